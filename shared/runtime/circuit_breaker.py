"""A circuit breaker: after a failure nobody calls the server for a second; then one tries, before all call it again."""

import threading
import time

OPEN_SECONDS = 1.0
TRY_SECONDS = 2.0
"""Longer than a try takes: one that does not report its outcome keeps the others away for this long."""


class CircuitBreaker:
    """Guards one server that many threads call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_until: float | None = None

    def admits(self) -> bool:
        """Whether to call the server now: always while closed, never while open, then one try at a time."""
        if self._open_until is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._open_until is None:
                return True
            if now < self._open_until:
                return False
            self._open_until = now + TRY_SECONDS
            return True

    def open(self) -> None:
        """A call has failed."""
        with self._lock:
            self._open_until = time.monotonic() + OPEN_SECONDS

    def close(self) -> None:
        """A call was answered."""
        if self._open_until is not None:
            with self._lock:
                self._open_until = None
