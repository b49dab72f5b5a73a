"""Run Python programs as forks of this process, which has imported their modules: they start at once and share memory.

The forking process must have no threads, and no connections that a child would share.
"""

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, NoReturn

IS_SAFE = sys.platform == "linux"
"""On other systems, libraries may crash in a fork that does not exec."""

_COMM = Path("/proc/self/comm")


def preload(modules: Iterable[str]) -> None:
    """Import modules once for all forks."""
    for module in modules:
        # A failing import fails again in the process that needs it and appears in its log.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # keeps the collector from writing to shared pages


class Fork:
    """A child that runs `main()` of a module, as `python -m MODULE` does. Has the interface of subprocess.Popen."""

    def __init__(self, name: str, module: str, environment: Mapping[str, str], log: IO[bytes]) -> None:
        """Start the child in a new session.

        Args:
            name: the name that `top` and `ps -o comm` show.
            environment: its complete environment.
            log: for its standard output and error.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        reader, writer = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(name, module, environment, log.fileno(), writer)
        os.close(writer)
        os.read(reader, 1)  # returns when the session exists: before that it cannot be killed as a group
        os.close(reader)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if timeout is not None and deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(name: str, module: str, environment: Mapping[str, str], log: int, started: int) -> NoReturn:
    """Run the child in a new session. Never returns."""
    code = 1
    try:
        os.setsid()
        os.close(started)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _close_all_above(2)  # especially the lock of the data folder
        os.environ.clear()
        os.environ.update(environment)
        _COMM.write_text(name[:15])
        importlib.import_module(module).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _close_all_above(last: int) -> None:
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if number > last:
            with contextlib.suppress(OSError):
                os.close(number)
