"""When a request must have an answer, whatever is away: what it waits for the database ends by then.

Callers are told to come again within two seconds. While the database keeps some waiting too long, that counts from
when they called; else a request that waited for its thread, as the process was busy, has the same time as any other.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from shared.runtime.problems import ServiceUnavailable

SECONDS = 1.25
"""For all that a request waits for. The rest of two seconds is for the last wait, and for what else there is to do."""
LEAST_SECONDS = 0.5
"""Every wait gets these, however late the request is: the database may be in good health, and this process slow."""
STRAIN_SECONDS = 3.0

queued: ContextVar[float] = ContextVar("queued", default=0.0)
"""The seconds that the request in hand has waited for a thread."""

_NOT_STARTED = 0.0
_until: ContextVar[float | None] = ContextVar("until", default=None)
_strained_until = 0.0


def missed() -> None:
    """Notes that the database has kept somebody waiting too long: who is queued behind that is waiting as well."""
    global _strained_until  # noqa: PLW0603
    _strained_until = time.monotonic() + STRAIN_SECONDS


def refuse_late() -> None:
    """Raises ServiceUnavailable for a request that has waited already as long as it may."""
    if _waited() > SECONDS:
        raise ServiceUnavailable


@contextmanager
def in_time() -> Iterator[None]:
    """Bounds all waits in the block together. The time starts with the first."""
    token = _until.set(_NOT_STARTED)
    try:
        yield
    finally:
        _until.reset(token)


def left(most: float) -> float:
    """How many seconds a wait may take that would otherwise take at most so many."""
    until = _until.get()
    if until is None:
        return most
    now = time.monotonic()
    if until == _NOT_STARTED:
        until = now + SECONDS - _waited()
        _until.set(until)
    return min(most, max(LEAST_SECONDS, until - now))


def _waited() -> float:
    return queued.get() if time.monotonic() < _strained_until else 0.0
