"""Pauses: what has failed is left alone for a second, and then tried by one, before all turn to it again."""

import threading
import time

SECONDS = 1.0
TRY_SECONDS = 2.0
"""Longer than a try takes: whoever tries and does not tell what came of it keeps the others away for so long."""


class Pause:
    """Of one server that many threads ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: float | None = None

    def admits(self) -> bool:
        """Whether to ask now: always while all is well, never within a pause, and after it one at a time."""
        if self._until is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._until is None:
                return True
            if now < self._until:
                return False
            self._until = now + TRY_SECONDS
            return True

    def begin(self) -> None:
        """It has failed."""
        with self._lock:
            self._until = time.monotonic() + SECONDS

    def end(self) -> None:
        """It has answered."""
        if self._until is not None:
            with self._lock:
                self._until = None
