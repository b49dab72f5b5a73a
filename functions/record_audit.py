"""Record every event in the audit trail."""

from datetime import datetime
from uuid import UUID

from cloudevents.http import CloudEvent
from sqlalchemy import Connection, exists, literal, or_, select
from sqlalchemy.dialects.postgresql import insert

from shared.event_function import event_function
from shared.events import ALL_EVENTS, Event
from shared.problems import InvalidRequest
from shared.tables import account, audit


@event_function(*ALL_EVENTS)
def record_audit(event: Event, envelope: CloudEvent, connection: Connection) -> None:
    """Record an event in the audit trail, once.

    Only of an account that is there, or was: anyone can ask for mails to addresses that have none, and so fill it.
    """
    row = {
        audit.c.event_id: _event_id(envelope),
        audit.c.account_id: event.user_id,
        audit.c.type: event.type,
        audit.c.occurred_at: _occurred_at(envelope),
        audit.c.request_id: str(envelope.get("requestid", "")),
        audit.c.data: event.model_dump(mode="json"),
    }
    is_known = or_(exists().where(account.c.id == event.user_id), exists().where(audit.c.account_id == event.user_id))
    values = select(*(literal(value, column.type) for column, value in row.items())).where(is_known)
    connection.execute(
        insert(audit)
        .from_select([column.name for column in row], values)
        .on_conflict_do_nothing(index_elements=["event_id"])
    )


def _event_id(envelope: CloudEvent) -> UUID:
    try:
        return UUID(envelope["id"])
    except ValueError:
        raise InvalidRequest("The id of the event is not a UUID.") from None


def _occurred_at(envelope: CloudEvent) -> datetime:
    try:
        time = datetime.fromisoformat(str(envelope.get("time", "")))
        if time.tzinfo is None:
            raise ValueError
    except ValueError:
        raise InvalidRequest("The event has no time (RFC 3339).") from None
    return time
