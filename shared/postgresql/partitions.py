"""The partitions of the outbox: one per day (UTC), so that one DROP TABLE removes old events."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from shared.postgresql.transactions import sqlstate, transaction
from shared.runtime.problems import ServiceUnavailable

KEPT = timedelta(days=8)
"""How long sent events are kept: longer than the broker keeps them, so that events it loses can be sent again."""
AHEAD = timedelta(days=3)
AT_ONCE = 5000

_LOCK = 7_253_417_911
_DEFAULT = "outbox_other"
_CHECK_VIOLATION = "23514"


def keep_days(now: datetime) -> None:
    """Create the partitions of the next days, and drop those whose events are old and sent.

    Wait at most a second for a locked partition; the next call tries again.
    """
    days = _days()
    for day in (_midnight(now) + timedelta(days=number) for number in range(AHEAD.days + 1)):
        if _name(day) not in days:
            _attempt(f"SELECT public.add_outbox_day('{day:%Y-%m-%d}')")
    oldest = _midnight(now - KEPT)
    for name in days:
        if name < _name(oldest):
            _attempt(f"SELECT public.drop_outbox_day('{name.removeprefix('outbox_')}')")  # unless unsent events remain
    while _delete_from_default(oldest) == AT_ONCE:
        pass


def _attempt(statement: str) -> None:
    """Change the partitions; do nothing if they stay locked or the default one has events of the new one's day."""
    try:
        with transaction() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            connection.exec_driver_sql(statement)
    except ServiceUnavailable:
        return
    except DBAPIError as error:
        if sqlstate(error) != _CHECK_VIOLATION:
            raise


def _midnight(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _name(day: datetime) -> str:
    return f"outbox_{day:%Y%m%d}"


def _days() -> list[str]:
    partitions = "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = 'outbox'::regclass"
    with transaction() as connection:
        return [name for (name,) in connection.exec_driver_sql(partitions) if name != _DEFAULT]


def _delete_from_default(oldest: datetime) -> int:
    old = f"SELECT ctid FROM {_DEFAULT} WHERE occurred_at < '{oldest.isoformat()}' AND sent_at IS NOT NULL"  # noqa: S608
    with transaction() as connection:
        statement = f"DELETE FROM {_DEFAULT} WHERE ctid = ANY(ARRAY({old} LIMIT {AT_ONCE}))"  # noqa: S608
        return connection.exec_driver_sql(statement).rowcount
