"""The outbox: events are committed with the change that they report, and wait here for the relay."""

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Connection, Uuid, any_, bindparam, func, insert, literal, select, update
from uuid_utils.compat import uuid7

from shared.events.types import Event
from shared.postgresql import own_writes
from shared.postgresql.pool import prepared
from shared.postgresql.tables import outbox
from shared.postgresql.transactions import transaction
from shared.runtime import logs

AT_ONCE = 5000


def announce(connection: Connection, *events: Event) -> None:
    """Put events in the outbox, in this order, in the transaction of the change that they report."""
    match events:
        case ():
            pass
        case (event,):
            connection.execute(ANNOUNCEMENT, announced(event))
        case _:
            connection.execute(insert(outbox).values([_row(event) for event in events]))


def announced(event: Event) -> dict[str, Any]:
    """Return the parameters of `ANNOUNCEMENT`."""
    return {f"event_{column}": value for column, value in _row(event).items()}


def _row(event: Event) -> dict[str, Any]:
    own_writes.add(event.user_id)
    return {
        "id": uuid7(),
        "type": event.type,
        "subject": event.user_id,
        "data": event.model_dump(mode="json"),
        "request_id": logs.request_id.get(),
    }


ANNOUNCEMENT = prepared(
    insert(outbox).values(
        {name: bindparam(f"event_{name}") for name in ("id", "type", "subject", "data", "request_id")}
    )
)
"""The statement that `announce` executes for one event; callers can combine it with other statements."""


def send_again(since: datetime) -> int:
    """Have the relay resend all events that have occurred since then; return how many it had sent.

    Each step is short enough for the database's time limit. Functions ignore events that they have already processed.
    """
    count, last = 0, None
    while True:
        sent = select(outbox.c.id).where(outbox.c.occurred_at >= since, outbox.c.sent_at.is_not(None))
        if last:
            sent = sent.where(outbox.c.id > last)
        with transaction() as connection:
            ids = connection.scalars(sent.order_by(outbox.c.id).limit(AT_ONCE)).all()
            connection.execute(
                update(outbox)
                .where(outbox.c.occurred_at >= since, outbox.c.id == any_(literal(ids, ARRAY(Uuid))))
                .values(sent_at=None)
            )
            wake_relay(connection)
        if not ids:
            return count
        count, last = count + len(ids), ids[-1]


def wake_relay(connection: Connection) -> None:
    """Notify the relay that events are waiting. Not needed after an insert, which has a trigger for it."""
    connection.execute(select(func.pg_notify("outbox", "")))
