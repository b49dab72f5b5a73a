"""How a process that serves no requests is told to end."""

import os
import select
import signal
import threading


class _SignalledEvent(threading.Event):
    """An event that a signal handler may set: this takes no lock, which the thread it interrupts could be holding."""

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
        # What is written is never read, so that all threads that wait see it.
        select.select([self._reader], [], [], timeout)
        return self._is_set


def stopped_by(*numbers: signal.Signals) -> threading.Event:
    """An event that is set from the first of these signals on. To be called in the main thread, once."""
    stopped = _SignalledEvent()
    for number in numbers:
        signal.signal(number, lambda *_: stopped.set())
    return stopped
