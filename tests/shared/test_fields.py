"""What requests and events may hold: formats that are stated are kept, whatever the library would read into a text."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.events.types import Event
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.text.fields import RequestBody

pytestmark = pytest.mark.no_service

LAX: dict[str, list[Any]] = {
    "date": ["0", "1551657600", "20190304", "2019-W10-1", "2019-03-04T00:00:00", " 2019-03-04", "2019-3-4", 0, 1.5],
    "date-time": ["0", "1551657600", "2019-03-04", "2019-03-04 00:00", 0, 1.5],
    "uuid": [
        "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057",
        "{01890a5d-ac96-774b-bcce-b302099a8057}",
        "01890a5dac96774bbcceb302099a8057",
        " 01890a5d-ac96-774b-bcce-b302099a8057",
    ],
    "integer": [" 5", "5.0", "+5", "1_0", "05", "５", "5e0"],
    "number": [" 5", "1_0", "５", "inf", "nan"],
    "boolean": ["yes", "on", "t", "1", "TRUE"],
}
"""By the format of a member, or its type: what is written otherwise, and libraries take all the same."""


def members() -> Iterator[tuple[type[BaseModel], str, str]]:
    """Each member of each body, query and event that has one of these formats."""
    load_all()
    models: set[type[BaseModel]] = set(Event.__subclasses__())
    models |= {model for function in HTTP_FUNCTIONS.values() for model in (function.body, function.query) if model}
    # Other tests define functions and events of their own.
    ours = [model for model in models if model.__module__.startswith(("functions.", "shared."))]
    for model in sorted(ours, key=lambda model: (model.__module__, model.__name__)):
        for name, schema in model.model_json_schema(by_alias=True).get("properties", {}).items():
            for part in (schema, *schema.get("anyOf", ())):
                if (format_ := part.get("format", part.get("type"))) in LAX:
                    yield model, name, format_


@pytest.mark.parametrize(("model", "name", "format_"), list(members()))
def test_a_member_with_a_format_is_read_in_no_other(model: type[BaseModel], name: str, format_: str) -> None:
    for value in LAX[format_]:
        with pytest.raises(ValidationError) as refused:
            read(model, {name: value})
        assert (name,) in {fault["loc"] for fault in refused.value.errors()}, value


def read(model: type[BaseModel], given: dict[str, Any]) -> BaseModel:
    """As the service does: a body is JSON text, a query and the data of an event are decoded."""
    return model.model_validate_json(json.dumps(given)) if issubclass(model, RequestBody) else model(**given)


def test_dates_integers_and_ids_are_among_them() -> None:
    assert {format_ for _, _, format_ in members()} >= {"date", "integer", "uuid"}
