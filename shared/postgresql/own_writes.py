"""Users who have written recently: they read from the primary until every replica in use has their writes.

Redis keeps this in a key per user, read in the same round trip as the session. If the session is missing too, as after
a login or when Redis has lost its keys, the user counts as having written. A user can still read data that is as old as
the replica's lag if Redis loses only that key, because a cluster's master died within milliseconds of the write, or
gets it late, because it was unreachable.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

from shared.redis import cache
from shared.redis.protocol import Command
from shared.runtime.settings import settings

MARGIN_SECONDS = 5
"""The clocks of two servers may differ by this much."""

may_lag: ContextVar[bool] = ContextVar("may_lag", default=False)
"""Whether the current request may read data that is seconds old."""

_written: ContextVar[set[UUID] | None] = ContextVar("written", default=None)
"""The users whose data the current request has written."""


def key(user_id: UUID) -> str:
    """Return the cache key that exists after a user has written."""
    return cache.key(user_id, "wrote")


def add(user_id: UUID) -> None:
    """Record that the current request writes data that this user may read next."""
    written = _written.get()
    if written is not None:
        written.add(user_id)


@contextmanager
def noted() -> Iterator[None]:
    """Store in Redis who has written in the request, at its end, after all commits, even if it fails after one."""
    may_lag.set(False)
    written: set[UUID] = set()
    token = _written.set(written)
    try:
        yield
    finally:
        _written.reset(token)
        if written and settings().replica_database_url:
            cache.put(*(key(user_id) for user_id in written), value=b"1", seconds=_seconds())


def commands(user_id: UUID) -> list[Command]:
    """Return the command that records a write of this user; none without a replica."""
    return [("SET", key(user_id), b"1", "EX", _seconds())] if settings().replica_database_url else []


def _seconds() -> int:
    return settings().replica_max_lag_seconds + MARGIN_SECONDS
