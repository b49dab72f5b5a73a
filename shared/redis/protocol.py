"""The interface to a Redis server or cluster, and the time limit of a try."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

TIMEOUT_SECONDS = 0.25
TRY_SECONDS = 2 * TIMEOUT_SECONDS
"""Limit for all waits of one try, however many nodes it asks."""
LEAST_SECONDS = 0.001
"""Minimum wait for an answer. When it passes, the connection is closed, so that no other command reads the answer."""

Command = tuple[Any, ...]
"""A command's name and arguments, as Redis documents them."""


class Redis(Protocol):
    """A Redis server or cluster."""

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands and return their results in order.

        Raises:
            OSError: Redis does not answer, or refused a command; others may have run.
        """


class RedisRefused(OSError):
    """Redis answered with an error."""


@contextmanager
def one_try() -> Iterator[None]:
    """Limit all waits for Redis in the block together to TRY_SECONDS."""
    token = _until.set(time.monotonic() + TRY_SECONDS)
    try:
        yield
    finally:
        _until.reset(token)


def left() -> float:
    """Return how many seconds a wait for Redis may take; zero or less if the current try has used up its time."""
    return min(TIMEOUT_SECONDS, _until.get() - time.monotonic())


_until: ContextVar[float] = ContextVar("until", default=math.inf)
