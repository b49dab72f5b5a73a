"""Record every event in the audit trail."""

from datetime import datetime
from uuid import UUID

from cloudevents.http import CloudEvent
from sqlalchemy import Connection, bindparam, exists, or_, select
from sqlalchemy.dialects.postgresql import insert

from shared.events.cloud_events import parse_time
from shared.events.types import ALL_EVENTS, Event
from shared.framework.event_function import event_function
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, audit
from shared.runtime.problems import InvalidRequest
from shared.text.fields import to_uuid

COLUMNS = audit.c["event_id", "account_id", "type", "occurred_at", "request_id", "data"]

# Built once, because composing a statement takes longer than executing it.
IS_KNOWN = or_(
    exists().where(account.c.id == bindparam("new_account_id")),
    exists().where(audit.c.account_id == bindparam("new_account_id")),
)
RECORD = prepared(
    insert(audit)
    .from_select(
        COLUMNS.keys(),
        select(*(bindparam(f"new_{column.name}", type_=column.type) for column in COLUMNS)).where(IS_KNOWN),
    )
    .on_conflict_do_nothing(index_elements=["event_id"])
)


# In order, so that the registration is the first entry of an account.
@event_function(*ALL_EVENTS)
def record_audit(event: Event, envelope: CloudEvent, connection: Connection) -> None:
    """Record an event in the audit trail, once.

    Events of accounts that never existed are skipped. Anyone can cause them by requesting mails to unknown addresses.
    """
    row = {
        "event_id": _event_id(envelope),
        "account_id": event.user_id,
        "type": event.type,
        "occurred_at": _occurred_at(envelope),
        "request_id": str(envelope.get("requestid", "")),
        "data": event.model_dump(mode="json"),
    }
    connection.execute(RECORD, {f"new_{column}": value for column, value in row.items()})


def _event_id(envelope: CloudEvent) -> UUID:
    try:
        return to_uuid(envelope["id"])
    except ValueError:
        raise InvalidRequest("The id of the event is not a UUID.") from None


def _occurred_at(envelope: CloudEvent) -> datetime:
    time = parse_time(envelope.get("time"))
    if time is None:
        raise InvalidRequest("The event has no time (RFC 3339).")
    return time
