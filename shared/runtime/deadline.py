"""The deadline of a request: its waits for the database end by then, even if the database is unreachable.

A caller gets an answer within two seconds, in the worst case a 503. While the database is too slow, the time a request
waited for a thread counts too. Otherwise it does not count, because then only the process was busy.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from shared.runtime.problems import ServiceUnavailable

SECONDS = 1.25
"""Limit for all waits of a request. The rest of the two seconds is for the last wait and the other work."""
LEAST_SECONDS = 0.5
"""Minimum for every wait, however late the request is: the database may be healthy and only this process slow."""
STRAIN_SECONDS = 3.0

queued: ContextVar[float] = ContextVar("queued", default=0.0)
"""The seconds that the current request has waited for a thread."""

_NOT_STARTED = 0.0
_until: ContextVar[float | None] = ContextVar("until", default=None)
_strained_until = 0.0


def missed() -> None:
    """Record that a wait for the database took too long, so that the time in the queue counts for a while."""
    global _strained_until  # noqa: PLW0603
    _strained_until = time.monotonic() + STRAIN_SECONDS


def refuse_late() -> None:
    """Raise ServiceUnavailable if the request has already waited too long."""
    if _waited() > SECONDS:
        raise ServiceUnavailable


@contextmanager
def in_time() -> Iterator[None]:
    """Limit all waits in the block together. The time starts with the first wait."""
    token = _until.set(_NOT_STARTED)
    try:
        yield
    finally:
        _until.reset(token)


def left(most: float) -> float:
    """Return how many seconds a wait may take, at most `most`."""
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
