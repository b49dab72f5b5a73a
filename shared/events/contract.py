"""The contract with event consumers: a JSON Schema (2020-12) for each type, in the folder schemas/.

    python -m shared.events.contract

This writes the schemas from the models and refuses a change that breaks a consumer. Other services know the old
schema and receive new events; our functions know the new schema and still find old events in the topic. So existing
fields never change, and new fields have a default.
"""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from shared.events.types import ALL_EVENTS, Event

SCHEMAS = Path(__file__).parent / "schemas"

ADVICE = (
    "Leave this event unchanged and announce a new one beside it whose type ends in the next version, such as .v2 "
    "after .v1."
)

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Omits the titles that pydantic derives from field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_of(event: type[Event]) -> Schema:
    """Return the JSON Schema of an event's data. It allows unknown fields, because later events may add some."""
    generated = event.model_json_schema(schema_generator=_Generator, mode="serialization")
    named = {"title": event.__name__, "description": event.__doc__}
    return {"$schema": _Generator.schema_dialect, "$id": f"urn:aegis:event:{event.type}", **named, **generated}


def file_of(event_type: str, folder: Path = SCHEMAS) -> Path:
    return folder / f"{event_type}.json"


def text_of(schema: Schema) -> str:
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


def breaks(old: Schema, new: Schema, within: str = "") -> Iterator[str]:
    """Yield the changes that break consumers on one schema when they receive events of the other."""
    was, now = old.get("properties", {}), new.get("properties", {})
    was_required, now_required = old.get("required", ()), new.get("required", ())
    for name in was:
        field = f"the field {within}{name}"
        if name not in now:
            yield f"{field} is gone"
        elif _meaning(was[name]) != _meaning(now[name]):
            yield f"{field} was {_shown(was[name])} and is {_shown(now[name])}"
        elif name in was_required and name not in now_required:
            yield f"{field} was in every event and can now be absent"
        elif name in now_required and name not in was_required:
            yield f"{field} needs its default: older events may lack it"
    for name in now:
        if name in now_required and name not in was:
            yield f"the new field {within}{name} needs a default: older events lack it"

    was_rest, now_rest = _rest(old), _rest(new)
    for keyword in sorted(was_rest.keys() | now_rest.keys()):
        if was_rest.get(keyword) != now_rest.get(keyword):
            where = f" of {within.rstrip('.')}" if within else ""
            yield f"{keyword}{where} was {_shown(was_rest.get(keyword))} and is {_shown(now_rest.get(keyword))}"
    for part, definition in old.get("$defs", {}).items():
        yield from breaks(definition, new.get("$defs", {}).get(part, {}), f"{part}.")


_WORDS = {"title", "description"}
_PARTS = {"properties", "required", "$defs"}


def _rest(schema: Schema) -> Schema:
    """Return a schema without its fields."""
    return {key: _meaning(value) for key, value in schema.items() if key not in _WORDS | _PARTS}


def _meaning(schema: Any) -> Any:
    """Return a schema without titles and descriptions."""
    match schema:
        case dict():
            return {key: _meaning(value) for key, value in schema.items() if key not in _WORDS}
        case list():
            return [_meaning(value) for value in schema]
    return schema


def _shown(schema: Any) -> str:
    return json.dumps(_meaning(schema), ensure_ascii=False)


def problems(folder: Path, events: Collection[type[Event]]) -> Iterator[str]:
    """Yield each way in which these events break the schemas in the folder."""
    by_type = {event.type: event for event in events}
    for file in sorted(folder.glob("*.json")):
        if event := by_type.get(file.stem):
            yield from (
                f"{file.stem}: {broken}" for broken in breaks(json.loads(file.read_text("utf-8")), schema_of(event))
            )
        else:
            yield f"{file.stem}: the event is gone (if nobody consumes it any more, delete {file} too)"


def main(folder: Path = SCHEMAS, events: Collection[type[Event]] = ALL_EVENTS) -> None:
    """Write the schemas. If there are problems, write nothing and exit with them."""
    if found := list(problems(folder, events)):
        sys.exit("\n".join(["this breaks consumers of these events:", *found, ADVICE]))
    for event in events:
        file_of(event.type, folder).write_text(text_of(schema_of(event)), "utf-8")


if __name__ == "__main__":
    main()
