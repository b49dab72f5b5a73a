"""Delete expired data."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import ColumnElement, Table, delete, exists, func, select, tuple_

from shared.events.outbox import announce
from shared.events.schedules import ScheduleFired
from shared.events.types import UserPurged
from shared.framework import idempotency
from shared.framework.event_function import event_function
from shared.identity import sessions
from shared.postgresql import partitions
from shared.postgresql.tables import (
    account,
    challenge,
    credential,
    dead_letter,
    former_email,
    phone_verification,
    processed_event,
    refresh_token,
    session,
    stored_answer,
    totp,
    verification,
)
from shared.postgresql.transactions import transaction

BATCH = 1000
WORK_SECONDS = 20.0
"""Shorter than a claim on the event lives. The next run does the rest."""

UNFINISHED = timedelta(days=1)
"""How long an unused phone code and an unconfirmed second factor are kept."""
PENDING = timedelta(days=7)
"""How long an unverified account is kept after its last registration; longer while a link is still valid."""
ENDED_SESSIONS = timedelta(days=90)
"""How long ended sessions appear in a user's data export."""
DELIVERED = partitions.KEPT
"""An event can be redelivered as long as the outbox keeps it."""
RETRIED = timedelta(days=30)
"""How long operators can see a dead letter after retrying it."""

log = logging.getLogger(__name__)


@event_function(
    ScheduleFired,
    schedule="37 18 * * *",  # 03:37 in Seoul, half an hour after purge_withdrawn has loaded the database
)
def clean_up(event: ScheduleFired) -> None:
    """Delete expired data in small transactions, one batch of each kind in turn."""
    deadline = time.monotonic() + WORK_SECONDS
    left = expired()
    deleted: Counter[str] = Counter()
    while left and time.monotonic() < deadline:
        counts = {kind: _delete_batch(*what) for kind, what in left.items()}
        deleted.update(counts)
        left = {kind: what for kind, what in left.items() if counts[kind] == BATCH}
    log.info("cleaned up", extra={"deleted": dict(deleted), "unfinished": list(left)})


def expired() -> Mapping[str, tuple[Table, ColumnElement[bool]]]:
    """Return what to delete: for each kind, its table and the condition."""
    return {
        "verifications": (verification, verification.c.expires_at < func.now()),
        "former addresses": (former_email, former_email.c.expires_at < func.now()),
        "challenges": (challenge, challenge.c.expires_at < func.now()),
        "phone codes": (
            phone_verification,
            (phone_verification.c.requested_at < func.now() - UNFINISHED)
            & (func.coalesce(phone_verification.c.expires_at, func.now()) <= func.now()),
        ),
        "second factors never confirmed": (
            totp,
            totp.c.confirmed_at.is_(None) & (totp.c.created_at < func.now() - UNFINISHED),
        ),
        "stored answers": (stored_answer, stored_answer.c.claimed_at < func.now() - idempotency.LIFETIME),
        # By then the session has expired; until then, reuse must be detected.
        "used refresh tokens": (refresh_token, refresh_token.c.used_at < func.now() - sessions.LIFETIME),
        "ended sessions": (session, session.c.ended_at < func.now() - ENDED_SESSIONS),
        "expired sessions": (session, session.c.expires_at < func.now() - ENDED_SESSIONS),
        # Kept as long as the event's dead letter, so that functions that have processed the event ignore a retry.
        "processed events": (
            processed_event,
            (processed_event.c.claimed_at < func.now() - DELIVERED)
            & ~exists().where(dead_letter.c.source + " " + dead_letter.c.event_id == processed_event.c.event_id),
        ),
        "dead letters that were retried": (dead_letter, dead_letter.c.retried_at < func.now() - RETRIED),
        "accounts never verified": (
            account,
            (account.c.status == "pending")
            & (account.c.created_at < func.now() - PENDING)
            & ~exists().where(credential.c.account_id == account.c.id, credential.c.changed_at >= func.now() - PENDING)
            & ~exists().where(verification.c.account_id == account.c.id, verification.c.expires_at >= func.now()),
        ),
    }


def _delete_batch(table: Table, condition: ColumnElement[bool]) -> int:
    """Delete a batch of a table's expired rows, skipping locked ones; return how many."""
    due = select(*table.primary_key).where(condition).limit(BATCH).with_for_update(skip_locked=True, of=table).cte()
    with transaction() as connection:
        deleted = connection.execute(
            delete(table).where(tuple_(*table.primary_key).in_(select(due))).returning(*table.primary_key)
        ).all()
        if table is account:
            announce(connection, *(UserPurged(user_id=row.id) for row in deleted))
    return len(deleted)
