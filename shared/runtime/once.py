"""`once`: what a process makes on first use, and its threads share.

functools.cache does not do: of threads that come first together, each makes one of its own.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801
    """Decorates a function without parameters: it runs for the first call, and all get what it returned."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def cache_clear(self) -> None:
        """Forgets it; the next call makes a new one."""
        self._made.clear()
