"""`once`: a value that a process creates on first use and shares between threads.

functools.cache does not suffice: threads that call at the same time would each create a value.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801
    """Decorates a function without parameters: only the first call runs it; all calls return its result."""

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
        """Discard the value; the next call creates a new one."""
        self._made.clear()
