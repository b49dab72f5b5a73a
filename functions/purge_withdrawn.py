"""Delete the accounts of users who withdrew and did not return in time."""

import time
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, select

from shared.events.outbox import announce
from shared.events.schedules import ScheduleFired
from shared.events.types import UserPurged
from shared.framework.event_function import event_function
from shared.identity import withdrawals
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.users import profiles

BATCH = 200
WORK_SECONDS = 20.0
"""Shorter than a claim on the event lives. The next run does the rest."""


@event_function(
    ScheduleFired,
    schedule="7 18 * * *",  # 03:07 in Seoul, when few users are awake
    uses=["cache"],
)
def purge_withdrawn(event: ScheduleFired) -> None:
    """Delete accounts that were withdrawn more than WITHDRAWAL_DAYS ago, with all their data.

    The audit trail stays, under an id that no longer identifies anyone.
    """
    deadline = time.monotonic() + WORK_SECONDS
    while len(_purge()) == BATCH and time.monotonic() < deadline:
        pass


def _purge() -> Sequence[UUID]:
    """Delete one batch. Accounts locked by a log-in at this moment are skipped, because the log-in restores them."""
    due = (
        select(account.c.id)
        .where(account.c.status.in_(("withdrawn", "suspended")), withdrawals.is_over())
        .order_by(account.c.withdrawn_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte()
    )
    with transaction() as connection:
        purged = connection.scalars(
            delete(account).where(account.c.id.in_(select(due.c.id))).returning(account.c.id)
        ).all()
        announce(connection, *(UserPurged(user_id=user_id) for user_id in purged))
        profiles.forget(*purged)
    return purged
