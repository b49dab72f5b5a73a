"""What the cache asks of a Redis, or of a cluster, and how long one try may take."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

TIMEOUT_SECONDS = 0.25
TRY_SECONDS = 2 * TIMEOUT_SECONDS
"""For all that one try waits for, however many nodes it asks."""
LEAST_SECONDS = 0.001
"""For an answer, even where no time is left: then the connection is closed, and nobody else reads it."""

Command = tuple[Any, ...]
"""Its name and its arguments, as Redis documents them."""


class Redis(Protocol):
    """One Redis, or a cluster."""

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands, in their order.

        Raises:
            OSError: it does not answer, or refuses one of them; others may have been done.
        """


class RedisRefused(OSError):
    """It answered with an error."""


@contextmanager
def one_try() -> Iterator[None]:
    """In the block, all waits for Redis together take no longer than a try may."""
    token = _until.set(time.monotonic() + TRY_SECONDS)
    try:
        yield
    finally:
        _until.reset(token)


def left() -> float:
    """How many seconds a wait for Redis may take; none, or fewer, when the try in hand has had its time."""
    return min(TIMEOUT_SECONDS, _until.get() - time.monotonic())


_until: ContextVar[float] = ContextVar("until", default=math.inf)
