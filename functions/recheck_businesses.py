"""Request another check of business registrations whose last check is a day old."""

import time
from datetime import timedelta

from sqlalchemy import exists, func, or_, select, update

from shared.events.outbox import announce
from shared.events.schedules import ScheduleFired
from shared.events.types import BusinessCheckDue
from shared.framework.event_function import event_function
from shared.postgresql.tables import account, business
from shared.postgresql.transactions import transaction

INTERVAL = timedelta(hours=23)
"""Less than a day, so that a late check does not delay the next one by another day."""
BATCH = 500
WORK_SECONDS = 20.0
"""Shorter than a claim on the event lives. The next run does the rest."""


@event_function(
    ScheduleFired,
    schedule="17 4 * * *",  # 13:17 in Seoul: in the registry's working hours, at a minute that few others choose
)
def recheck_businesses(event: ScheduleFired) -> None:
    """Announce due checks: of verified businesses, and of those that the registry has not answered about yet."""
    deadline = time.monotonic() + WORK_SECONDS
    while _announce_batch() == BATCH and time.monotonic() < deadline:
        pass


def _announce_batch() -> int:
    """Announce a batch of checks, marked so that concurrent runs announce different ones; return how many."""
    cutoff = func.now() - INTERVAL
    due = (
        select(business.c.account_id)
        .where(
            business.c.status.in_(("verified", "pending")),
            func.coalesce(business.c.checked_at, business.c.submitted_at) < cutoff,
            ~exists().where(account.c.id == business.c.account_id, account.c.status == "withdrawn"),
            or_(business.c.check_announced_at.is_(None), business.c.check_announced_at < cutoff),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    mark = (
        update(business)
        .where(business.c.account_id == due.c.account_id)
        .values(check_announced_at=func.now())
        .returning(business.c.account_id)
    )
    with transaction() as connection:
        user_ids = connection.scalars(mark).all()
        announce(connection, *(BusinessCheckDue(user_id=user_id) for user_id in user_ids))
    return len(user_ids)
