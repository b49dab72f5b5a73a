"""Stopping a process that serves no requests."""

import os
import select
import signal
import threading


class _SignalledEvent(threading.Event):
    """An event that a signal handler can set: it takes no lock that the interrupted thread could hold."""

    def __init__(self) -> None:
        super().__init__()
        self._reader, self._writer = os.pipe()
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._writer, b"\0")

    def wait(self, timeout: float | None = None) -> bool:
        # The byte is never read, so that every waiting thread sees it.
        select.select([self._reader], [], [], timeout)
        return self._is_set


def stopped_by(*numbers: signal.Signals) -> threading.Event:
    """Return an event that the first of these signals sets. Call this once, in the main thread."""
    stopped = _SignalledEvent()
    for number in numbers:
        signal.signal(number, lambda *_: stopped.set())
    return stopped
