"""The contract with those who read events: the schemas are those of the models, and no change breaks a reader."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import jsonschema_rs
import pytest
from pydantic import BaseModel, Field, create_model

from shared.events import contract
from shared.events.types import ALL_EVENTS, Event
from tests.conftest import ROOT

pytestmark = pytest.mark.no_service

FILES = sorted(contract.SCHEMAS.glob("*.json"))


class Business(BaseModel):
    """What an event may hold within a field."""

    number: str
    title: str = ""


class Sample(Event):
    """An event that only these tests have."""

    type: ClassVar[str] = "com.aegis.user.sample.v1"
    title: str
    locale: Literal["ko", "en"]
    count: int
    reasons: list[str] = Field(default_factory=list)
    actor_id: UUID | None = None
    business: Business | None = None


def changed(**fields: Any) -> type[Event]:
    """The sample with some fields changed or added, or gone where one is None."""
    gone = {name for name, field in fields.items() if field is None}
    kept = {name: (field.annotation, field) for name, field in Sample.model_fields.items() if name not in gone}
    new = {name: field for name, field in fields.items() if field is not None}
    model: type[Event] = create_model("Sample", __base__=Event, __doc__=Sample.__doc__, **kept | new)
    model.type = Sample.type
    return model


def within(**fields: Any) -> type[Event]:
    """The sample with fields of its business changed or added."""
    kept = {name: (field.annotation, field) for name, field in Business.model_fields.items()}
    return changed(business=(create_model("Business", **kept | fields) | None, None))


def breaks(new: type[Event]) -> list[str]:
    return list(contract.breaks(contract.schema_of(Sample), contract.schema_of(new)))


@pytest.mark.parametrize("event", ALL_EVENTS, ids=lambda event: event.type)
def test_the_schema_of_each_event_is_that_of_its_model(event: type[Event]) -> None:
    file = contract.file_of(event.type)
    written, made = file.read_text("utf-8") if file.exists() else "", contract.text_of(contract.schema_of(event))
    assert written == made, "run `make generate`: it writes the file anew, or says what the change breaks"


def test_there_is_no_schema_without_an_event() -> None:
    assert [file.stem for file in FILES] == sorted(event.type for event in ALL_EVENTS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_schema_is_valid_and_says_what_its_event_means(file: Path) -> None:
    schema = json.loads(file.read_text("utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(schema)
    assert schema["$id"] == f"urn:aegis:event:{file.stem}"
    assert schema["title"]
    assert schema["description"]
    assert re.fullmatch(r"com\.aegis\.user\.[a-z_]+\.v[1-9]", file.stem)


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (changed(title=None), "the field title is gone"),
        (changed(actor_id=None), "the field actor_id is gone"),
        (changed(count=(str, ...)), 'the field count was {"type": "integer"} and is {"type": "string"}'),
        (changed(count=(int, Field(le=9))), "the field count was"),
        (changed(actor_id=(str | None, None)), "the field actor_id was"),
        (changed(actor_id=(UUID | None, UUID(int=0))), "the field actor_id was"),
        (changed(locale=(Literal["ko", "en", "ja"], ...)), "the field locale was"),
        (changed(locale=(Literal["ko"], ...)), "the field locale was"),
        (changed(count=(int | None, ...)), "the field count was"),
        (changed(count=(int, Field(default_factory=int))), "the field count was in every event and can now be absent"),
        (changed(count=(int, 0)), "the field count was"),
        (changed(actor_id=(UUID | None, ...)), "the field actor_id was"),
        (changed(reasons=(list[str], ...)), "the field reasons needs its default"),
        (changed(reason=(str, ...)), "the new field reason needs a default"),
        (within(number=(int, ...)), "the field Business.number was"),
        (within(reason=(str, ...)), "the new field Business.reason needs a default"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_that_breaks_a_reader_is_told(new: type[Event], told: str) -> None:
    (found,) = breaks(new)
    assert told in found


def test_a_schema_that_no_longer_allows_further_fields_is_told() -> None:
    new = {**contract.schema_of(Sample), "additionalProperties": False}
    (found,) = contract.breaks(contract.schema_of(Sample), new)
    assert found == "additionalProperties was null and is false"


@pytest.mark.parametrize(
    "new",
    [
        changed(),
        changed(reason=(str, "")),
        changed(reason=(str | None, None), codes=(list[str], Field(default_factory=list))),
        changed(count=(int, Field(description="How many.", title="Count"))),
        changed(actor_id=(Annotated[UUID, Field(description="Who it was.")] | None, None)),
        changed(previous=(Business | None, None)),
        within(closed=(bool, False)),
        within(number=(str, Field(description="Ten digits."))),
    ],
    ids=[
        "nothing",
        "a field",
        "two fields",
        "words",
        "words of a kind",
        "a field of a known kind",
        "a field within",
        "words within",
    ],
)
def test_a_change_that_breaks_nobody_is_let_through(new: type[Event]) -> None:
    assert breaks(new) == []


def test_events_of_last_week_are_read_by_a_model_with_a_new_field() -> None:
    old = Sample(user_id=UUID(int=1), title="a", locale="ko", count=1).model_dump(mode="json")
    new = changed(reason=(str, "none"))
    assert breaks(new) == []
    assert new.model_validate(old).model_dump()["reason"] == "none"


def test_a_change_that_breaks_a_reader_is_refused_with_what_to_do(tmp_path: Path) -> None:
    contract.main(tmp_path, [Sample])
    file = contract.file_of(Sample.type, tmp_path)
    before = file.read_text("utf-8")
    with pytest.raises(SystemExit) as refused:
        contract.main(tmp_path, [changed(title=None)])
    assert "com.aegis.user.sample.v1: the field title is gone" in str(refused.value)
    assert "a new one beside it" in str(refused.value)
    assert file.read_text("utf-8") == before


def test_an_event_that_is_gone_is_refused(tmp_path: Path) -> None:
    contract.main(tmp_path, [Sample])
    with pytest.raises(SystemExit, match=r"com\.aegis\.user\.sample\.v1: the event is gone"):
        contract.main(tmp_path, [])


def test_a_field_with_a_default_is_written(tmp_path: Path) -> None:
    contract.main(tmp_path, [Sample])
    contract.main(tmp_path, [changed(reason=(str, ""))])
    written = json.loads(contract.file_of(Sample.type, tmp_path).read_text("utf-8"))
    assert "reason" in written["properties"]
    assert "reason" not in written["required"]


def test_a_refused_change_is_a_failed_command() -> None:
    program = "from shared.events import contract, types; contract.main(events=types.ALL_EVENTS[1:])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{ALL_EVENTS[0].type}: the event is gone" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_function_starts_without_the_contract() -> None:
    program = "import sys, functions.register; print('shared.events.contract' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "False"
