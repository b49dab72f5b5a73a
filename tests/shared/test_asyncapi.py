"""The AsyncAPI document against the events and the functions that take them."""

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from shared.events import contract
from shared.events.types import ALL_EVENTS, Event
from shared.framework import asyncapi
from shared.framework.registry import EVENT_FUNCTIONS, load_all

SPECIFICATION = Path(__file__).parent / "asyncapi" / "3.1.0.json"
"""As AsyncAPI publishes it (@asyncapi/specs 6.11.1, "3.1.0-without-$id.json", Apache-2.0), without its white space."""


@pytest.fixture(scope="module")
def document() -> Any:
    load_all()
    return json.loads(json.dumps(asyncapi.document(EVENT_FUNCTIONS.values(), os.environ["PUBLIC_URL"])))


def references(part: Any) -> Iterator[str]:
    """Every $ref in a part of the document."""
    match part:
        case dict():
            yield from [part["$ref"]] if "$ref" in part else []
            for value in part.values():
                yield from references(value)
        case list():
            for value in part:
                yield from references(value)


def test_the_document_is_served(document: Any) -> None:
    with urllib.request.urlopen(f"{os.environ['PUBLIC_URL']}/asyncapi.json", timeout=10) as response:
        assert json.load(response) == document


def test_the_api_documentation_leads_to_it() -> None:
    with urllib.request.urlopen(f"{os.environ['PUBLIC_URL']}/openapi.json", timeout=10) as response:
        assert json.load(response)["externalDocs"]["url"] == f"{os.environ['PUBLIC_URL']}/asyncapi.json"


def test_the_document_is_valid_asyncapi_3_1(document: Any) -> None:
    assert document["asyncapi"] == "3.1.0"
    specification = json.loads(SPECIFICATION.read_text("utf-8"))
    jsonschema_rs.Draft7Validator(specification, validate_formats=True).validate(document)


def test_the_document_says_whom_to_ask_and_on_what_terms_it_may_be_used(document: Any) -> None:
    assert document["info"]["contact"].keys() == {"name", "url", "email"}
    assert document["info"]["license"]["name"] == "MIT"


def test_each_operation_says_what_it_does_in_full(document: Any) -> None:
    assert [name for name, operation in document["operations"].items() if not operation.get("description")] == []


def test_a_generator_of_code_finds_a_name_for_each_enumeration(document: Any) -> None:
    def unnamed(part: Any) -> Iterator[Any]:
        if isinstance(part, dict):
            yield from [part] if "enum" in part and "title" not in part else []
        for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from unnamed(value)

    assert list(unnamed(document)) == []


def test_every_reference_leads_somewhere(document: Any) -> None:
    found = set(references(document))
    assert len(found) > len(ALL_EVENTS)
    for reference in found:
        part = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_the_document_has_every_event_and_no_other(document: Any) -> None:
    types = {event.type for event in ALL_EVENTS}
    assert document["channels"]["events"]["messages"].keys() == types
    assert document["components"]["messages"].keys() == types
    assert taken_by("announce", document) == types


@pytest.mark.parametrize("event", ALL_EVENTS, ids=lambda event: event.type)
def test_each_message_has_the_schema_and_the_type_of_its_event(document: Any, event: type[Event]) -> None:
    message = document["components"]["messages"][event.type]
    schema = json.loads(contract.file_of(event.type).read_text("utf-8"))
    del schema["$schema"]
    assert message["payload"] == schema
    assert message["headers"]["properties"]["ce_type"] == {"const": event.type}


def test_the_functions_that_take_events_are_named_with_those_that_they_take(document: Any) -> None:
    types = {event.type for event in ALL_EVENTS}
    wanted = {name: handled for name, function in EVENT_FUNCTIONS.items() if (handled := types & set(function.handles))}
    operations = document["operations"].keys() - {"announce"}
    assert {name: taken_by(name, document) for name in operations} == wanted


def taken_by(operation: str, document: Any) -> set[str]:
    return {message["$ref"].rpartition("/")[2] for message in document["operations"][operation]["messages"]}
