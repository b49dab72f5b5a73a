"""Resend events that a function should have processed and did not."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ARRAY, Connection, Text, Uuid, any_, cast, column, exists, func, literal, select, update, values

from shared.events import dead_letters
from shared.events.outbox import wake_relay
from shared.events.schedules import ScheduleFired
from shared.events.types import ALL_EVENTS, SOURCE
from shared.framework.event_function import event_function
from shared.postgresql.tables import dead_letter, outbox, processed_event
from shared.postgresql.transactions import transaction
from shared.runtime.manifests import triggers

LATE = timedelta(hours=1)
"""Time since the event was sent. Longer than a Trigger retries an event, but a long queue can take longer."""
WINDOW = timedelta(hours=6)
"""How far back each run looks, so that some runs may fail. For older events there is `aegis events replay`."""
BATCH = 5000
WORK_SECONDS = 20.0
"""Shorter than a claim on the event lives."""

log = logging.getLogger(__name__)


@event_function(
    ScheduleFired,
    schedule="23 * * * *",  # hourly, in a minute that few others choose
)
def resend_events(event: ScheduleFired) -> None:
    """Resend events that a function should have processed and did not.

    Events are lost if the broker loses part of its topic, or if Knative cannot store a dead letter. Functions that have
    already processed a resent event ignore it. Dead letters are not resent: they wait for an operator.

    An event that is still waiting in a long queue looks like a lost one, so it may be resent, once an hour. It still
    takes effect only once.
    """
    deadline = time.monotonic() + WORK_SECONDS
    last, resent = UUID(int=0), 0
    while time.monotonic() < deadline:
        with transaction() as connection:
            ids = connection.scalars(
                select(outbox.c.id)
                .where(
                    outbox.c.occurred_at > func.now() - WINDOW,
                    outbox.c.sent_at < func.now() - LATE,
                    outbox.c.id > last,
                )
                .order_by(outbox.c.id)
                .limit(BATCH)
            ).all()
            if not ids:
                break
            resent += _resend_unprocessed(connection, ids)
            last = ids[-1]
    if resent:
        log.warning("resent unprocessed events", extra={"events": resent})


def _resend_unprocessed(connection: Connection, ids: Sequence[UUID]) -> int:
    """Mark those of these events as unsent that a function has not processed; return how many."""
    wanted = values(column("function", Text), column("type", Text), name="wanted").data(
        [
            (trigger.function, event.type)
            for trigger in triggers()
            for event in ALL_EVENTS
            if trigger.matches({"type": event.type})
        ]
    )
    is_processed = (
        exists()
        .where(
            processed_event.c.function == wanted.c.function,
            processed_event.c.event_id == func.concat(SOURCE, " ", outbox.c.id),
            processed_event.c.done_at.is_not(None),
        )
        .correlate(wanted, outbox)
    )
    is_kept = (
        exists()
        .where(
            dead_letter.c.function == wanted.c.function,
            dead_letter.c.source == SOURCE,
            dead_letter.c.event_id == cast(outbox.c.id, Text),
            dead_letters.is_open,
        )
        .correlate(wanted, outbox)
    )
    count = connection.execute(
        update(outbox)
        .where(
            outbox.c.occurred_at > func.now() - WINDOW,
            outbox.c.id == any_(literal(ids, ARRAY(Uuid))),
            exists(select(wanted).where(wanted.c.type == outbox.c.type, ~is_processed, ~is_kept)),
        )
        .values(sent_at=None)
    ).rowcount
    if count:
        wake_relay(connection)
    return count
