"""Who has written lately: what they read comes from the primary until every replica that is asked has it.

Redis knows it, and tells it in the round trip that a session takes anyway. Where it knows nothing of a session either,
as after a log-in or when it has lost its keys, it may have forgotten what was written, too. What it forgets alone, as a
master of a cluster died within milliseconds of the write, or learns late, as it was away, may be read as it was
before, by as much as the replica lags.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

from shared.redis import cache
from shared.redis.protocol import Command
from shared.runtime.settings import settings

MARGIN_SECONDS = 5
"""By so much the clocks of two servers may differ."""

may_lag: ContextVar[bool] = ContextVar("may_lag", default=False)
"""Whether the request in hand may read what is seconds old."""

_written: ContextVar[set[UUID] | None] = ContextVar("written", default=None)
"""Whose data the request in hand has written."""


def key(user_id: UUID) -> str:
    """The key of the cache that stands there after a user has written."""
    return cache.key(user_id, "wrote")


def add(user_id: UUID) -> None:
    """Says that the request in hand writes what this user may look for next."""
    written = _written.get()
    if written is not None:
        written.add(user_id)


@contextmanager
def noted() -> Iterator[None]:
    """Notes at the end of a request, when all is committed, who has written in it; also when it fails after that."""
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
    """What notes it of one user, where there is a replica at all."""
    return [("SET", key(user_id), b"1", "EX", _seconds())] if settings().replica_database_url else []


def _seconds() -> int:
    return settings().replica_max_lag_seconds + MARGIN_SECONDS
