"""List, show, retry and drop events that could not be delivered: `aegis events dead`."""

import base64
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from knative.terminal import Refused, Result, aligned
from shared.events import dead_letters
from shared.events.outbox import wake_relay
from shared.events.types import SOURCE
from shared.postgresql.tables import dead_letter, outbox, processed_event
from shared.postgresql.transactions import transaction
from shared.runtime.resource_names import function_name

LISTED = 50
MAX_WIDTH = 40
_SIDES = "><<<>"
BATCH = 200
SHOWN = 4000
_NEWEST_FIRST = dead_letter.c.last_at.desc(), dead_letter.c.number.desc()
TYPE_PREFIX = "com.aegis.user."
"""Left out in the list, and optional in --type."""


class Chosen(NamedTuple):
    """The dead letters that a command applies to: by number, or all open ones, of a function or a type."""

    numbers: Sequence[int] = ()
    function: str | None = None
    type: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = [
            dead_letter.c.number.in_(self.numbers) if self.numbers else dead_letters.is_open
        ]
        if self.function:
            conditions.append(dead_letter.c.function == function_name(self.function))
        if self.type:
            conditions.append(dead_letter.c.type.in_((self.type, TYPE_PREFIX + self.type)))
        return conditions


def table(chosen: Chosen) -> Result:
    """Return the open dead letters as a table, newest first."""
    shown = dead_letter.c["number", "function", "type", "last_at", "count", "error"]
    with transaction() as connection:
        query = select(*shown).where(*chosen.conditions())
        rows = connection.execute(query.order_by(*_NEWEST_FIRST).limit(LISTED)).all()
        count = connection.scalar(select(func.count()).select_from(dead_letter).where(*chosen.conditions())) or 0
    told = [row._asdict() | {"last_at": _iso(row.last_at)} for row in rows]
    if not rows:
        return Result("There are no dead letters.", {"count": 0, "dead_letters": []})
    cells = [("NUMBER", "FUNCTION", "TYPE", "LAST", "COUNT", "ERROR")]
    for row in rows:
        type_ = _printable(row.type.removeprefix(TYPE_PREFIX)) or "-"
        cells.append((f"{row.number}", row.function, type_, _utc(row.last_at), f"{row.count}", _printable(row.error)))
    lines = aligned([[*(text[:MAX_WIDTH] for text in texts), error] for *texts, error in cells], _SIDES)
    if sys.stdout.isatty():  # a program wants the whole text
        columns = shutil.get_terminal_size().columns
        lines = [line if len(line) <= columns else f"{line[: columns - 1]}…" for line in lines]
    if count > len(rows):
        lines += [
            "",
            f"The newest {LISTED} of {count}. Narrow the list with --function and --type; retry and drop accept --all.",
        ]
    return Result("\n".join(lines), {"count": count, "dead_letters": told})


def show(number: int) -> Result:
    """Return everything that is stored about one dead letter."""
    with transaction() as connection:
        row = connection.execute(select(dead_letter).where(dead_letter.c.number == number)).one_or_none()
    if row is None:
        raise Refused(_missing(number))
    facts = {
        "number": row.number,
        "function": row.function,
        "error": row.error,
        "count": row.count,
        "first": _utc(row.first_at),
        "last": _utc(row.last_at),
        "retried": _utc(row.retried_at) if row.retried_at else "no",
    }
    attributes = [(_printable(name), _printable(value)) for name, value in sorted(row.attributes.items())]
    lines = aligned([(name, _printable(str(value))) for name, value in facts.items()])
    lines += ["", "attributes", *(f"  {line}" for line in aligned(attributes))]
    lines += ["", f"data ({row.content_type or 'of no content type'}, {len(row.data)} bytes)", _shown(row.data)]
    times = {name: _iso(row._mapping[name]) for name in ("first_at", "last_at", "retried_at")}
    kept = {"number": row.number, "function": row.function, "error": row.error, "count": row.count, **times}
    told = kept | {"attributes": row.attributes, "content_type": row.content_type, **_data(row.data)}
    return Result("\n".join(lines), told)


def retry(chosen: Chosen) -> Result:
    """Put events back into the outbox. Return what was done.

    Raises:
        Refused: some do not exist or are not events of this service. The others were put back.
    """
    refused, done, last = _missing_of(chosen), 0, 0
    while True:
        with transaction() as connection:
            found = select(dead_letter).where(dead_letter.c.number > last, *chosen.conditions())
            rows = connection.execute(found.order_by(dead_letter.c.number).limit(BATCH).with_for_update()).all()
            events: dict[int, dict[str, Any]] = {}
            for row in rows:
                try:
                    events[row.number] = _event(row)
                except Refused as reason:
                    refused.append(f"{row.number} was not retried: {reason}")
            _put_back(connection, {event["id"]: event for event in events.values()})
            connection.execute(
                update(dead_letter).where(dead_letter.c.number.in_(events)).values(retried_at=func.now())
            )
        if not rows:
            return _report(done, "retried", "put back for delivery. Events that fail again are listed again.", refused)
        done, last = done + len(events), rows[-1].number


def drop(chosen: Chosen) -> Result:
    """Delete dead letters. Return what was done.

    Raises:
        Refused: some do not exist. The others were dropped.
    """
    refused, done, deleted = _missing_of(chosen), 0, 1
    while deleted:
        some = select(dead_letter.c.number).where(*chosen.conditions()).limit(BATCH)
        gone = delete(dead_letter).where(dead_letter.c.number.in_(some))
        with transaction() as connection:
            rows = connection.execute(gone.returning(*dead_letter.c["function", "source", "event_id"])).all()
            _settle(connection, rows)
        deleted = len(rows)
        done += deleted
    return _report(done, "dropped", "dropped.", refused)


def _settle(connection: Connection, rows: Sequence[Row[Any]]) -> None:
    """Mark events as processed by the function that failed, so that they are not sent again as lost."""
    if not rows:
        return
    marks = {(row.function, f"{row.source} {row.event_id}") for row in rows}
    processed = insert(processed_event).values(
        [{"function": function, "event_id": event_id, "done_at": func.now()} for function, event_id in marks]
    )
    connection.execute(
        processed.on_conflict_do_update(index_elements=["function", "event_id"], set_={"done_at": func.now()})
    )


def _event(row: Row[Any]) -> dict[str, Any]:
    """Return the event's row for the outbox.

    Raises:
        Refused: it is not an event of this service.
    """
    if row.source != SOURCE:
        raise Refused(
            f"it comes from {_printable(row.source) or 'an unknown source'}, not of this service. {_ELSEWHERE}"
        )
    try:
        data, occurred_at = json.loads(row.data), datetime.fromisoformat(row.attributes["time"])
        if not isinstance(data, dict) or occurred_at.tzinfo is None:
            raise ValueError
        return {
            "id": UUID(row.event_id),
            "type": row.type,
            "subject": UUID(row.attributes["subject"]),
            "data": data,
            "request_id": row.attributes.get("requestid", ""),
            "occurred_at": occurred_at,
        }
    except (ValueError, KeyError, RecursionError):
        raise Refused(
            f"its id, subject, time or data is not valid for an event of this service. {_ELSEWHERE}"
        ) from None


_ELSEWHERE = "If you need the event, have its source send it again; then drop this one."


def _put_back(connection: Connection, events: dict[UUID, dict[str, Any]]) -> None:
    """Mark events as not sent, and insert those that the outbox no longer has."""
    if not events:
        return
    again = update(outbox).where(outbox.c.id.in_(events)).values(sent_at=None).returning(outbox.c.id)
    held = set(connection.scalars(again))
    if gone := [event for id_, event in events.items() if id_ not in held]:
        connection.execute(insert(outbox).values(gone))
    wake_relay(connection)


def _missing_of(chosen: Chosen) -> list[str]:
    if not chosen.numbers:
        return []
    with transaction() as connection:
        there = set(connection.scalars(select(dead_letter.c.number).where(*chosen.conditions())))
    return [_missing(number) for number in dict.fromkeys(chosen.numbers) if number not in there]


def _missing(number: int) -> str:
    return f"There is no dead letter {number}. aegis events dead list shows those that exist."


def _report(done: int, name: str, what: str, refused: Sequence[str]) -> Result:
    said = f"{done} {what}" if done else "Nothing was changed."
    if not refused:
        return Result(said if done else f"There are no dead letters. {said}", {name: done})
    more = [f"The same applies to {len(refused) - LISTED} more."] if len(refused) > LISTED else []
    raise Refused("\n".join([said, *refused[:LISTED], *more]))


def _shown(data: bytes) -> str:
    """Return JSON indented, other text as it is, and anything else as hexadecimal bytes."""
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        text = data.decode("utf-8", "replace")
        if not text.replace("\n", "").isprintable():
            text = "\n".join(textwrap.wrap(data[:SHOWN].hex(" "), 96))
    cut = "\n  ..." if len(text) > SHOWN else ""
    return "\n".join(f"  {_printable(line)}" for line in text[:SHOWN].splitlines()) + cut


def _data(content: bytes) -> dict[str, Any]:
    """Return data as in the JSON format of CloudEvents."""
    try:
        return {"data": json.loads(content)}
    except (ValueError, RecursionError):
        return {"data_base64": base64.b64encode(content).decode()}


def _iso(time: datetime | None) -> str | None:
    return time.astimezone(UTC).isoformat() if time else None


def _printable(text: str) -> str:
    """Replace characters that would move a terminal's cursor or change its colours."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
