"""A circuit breaker: after a failure it blocks calls for a second, then allows one try before all others."""

import threading
import time

OPEN_SECONDS = 1.0
TRY_SECONDS = 2.0
"""Longer than a try takes. A try that does not report its outcome blocks the others for this long."""


class CircuitBreaker:
    """Guards a server that many threads call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_until: float | None = None

    def admits(self) -> bool:
        """Return whether to call the server now: always while closed, never while open, then one try at a time."""
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
        """Record that a call failed."""
        with self._lock:
            self._open_until = time.monotonic() + OPEN_SECONDS

    def close(self) -> None:
        """Record that a call was answered."""
        if self._open_until is not None:
            with self._lock:
                self._open_until = None
