"""Delete what has expired."""

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
"""Within the lifetime of a claim on the event. What is left then is done the next time."""

UNFINISHED = timedelta(days=1)
"""For so long a code may wait for its user, and a second factor for its confirmation."""
PENDING = timedelta(days=7)
"""For so long an address may wait to be verified, from the last registration of it, or until a link has expired."""
ENDED_SESSIONS = timedelta(days=90)
"""For so long a user can see in an export which sessions there were."""
DELIVERED = partitions.KEPT
"""An event may come again for as long as the outbox has it."""
RETRIED = timedelta(days=30)
"""For so long an operator can see what was retried and not given up again."""

log = logging.getLogger(__name__)


@event_function(
    ScheduleFired,
    schedule="37 18 * * *",  # 03:37 in Seoul, half an hour after purge_withdrawn has loaded the database
)
def clean_up(event: ScheduleFired) -> None:
    """Delete what has expired: in small transactions, a batch of each kind in turn."""
    deadline = time.monotonic() + WORK_SECONDS
    left = expired()
    deleted: Counter[str] = Counter()
    while left and time.monotonic() < deadline:
        counts = {kind: _delete_batch(*what) for kind, what in left.items()}
        deleted.update(counts)
        left = {kind: what for kind, what in left.items() if counts[kind] == BATCH}
    log.info("cleaned up", extra={"deleted": dict(deleted), "unfinished": list(left)})


def expired() -> Mapping[str, tuple[Table, ColumnElement[bool]]]:
    """What is deleted: the kind, its table, and the condition."""
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
        # Used for so long, its session has expired: until then a second use must be recognized.
        "used refresh tokens": (refresh_token, refresh_token.c.used_at < func.now() - sessions.LIFETIME),
        "ended sessions": (session, session.c.ended_at < func.now() - ENDED_SESSIONS),
        "expired sessions": (session, session.c.expires_at < func.now() - ENDED_SESSIONS),
        # Those of a dead letter stay as long as it does: when it is retried, whoever has processed the event knows it.
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
    """Deletes some of a table's expired rows, passing over those that somebody works on; returns how many."""
    due = select(*table.primary_key).where(condition).limit(BATCH).with_for_update(skip_locked=True, of=table).cte()
    with transaction() as connection:
        deleted = connection.execute(
            delete(table).where(tuple_(*table.primary_key).in_(select(due))).returning(*table.primary_key)
        ).all()
        if table is account:
            announce(connection, *(UserPurged(user_id=row.id) for row in deleted))
    return len(deleted)
