"""Have the business registrations checked again whose last check is a day old."""

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
"""Less than a day, so that what was checked late one night is not left out the next."""
BATCH = 500
WORK_SECONDS = 20.0
"""Within the lifetime of a claim on the event. What is left then is done the next time."""


@event_function(
    ScheduleFired,
    schedule="17 4 * * *",  # 13:17 in Seoul: the registry is at work, and few others choose this minute
)
def recheck_businesses(event: ScheduleFired) -> None:
    """Announce that checks are due: of verified businesses, and of those that the registry never gave an answer on."""
    deadline = time.monotonic() + WORK_SECONDS
    while _announce_batch() == BATCH and time.monotonic() < deadline:
        pass


def _announce_batch() -> int:
    """Announces some checks, and marks them as announced: of two runs at once each takes others. Returns how many."""
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
