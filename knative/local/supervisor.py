"""Run the local processes: start them, restart them when they die, and stop them."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from knative.local.fork import Fork

STOP_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 5.0
LAST_LINES = 12


class StartFailed(Exception):
    """A process did not become ready. The message has the last lines of its log."""


class Stopped(Exception):
    """The user wants everything to stop."""


@dataclass
class Process:
    """A program to run. `is_ready` is polled until it returns True."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool] = lambda: True
    module: str = ""
    """If set, a fork of this process runs this module instead of the command."""
    stop_signal: signal.Signals = signal.SIGTERM
    is_server: bool = False
    """Other processes depend on it, so it stops after them."""
    popen: subprocess.Popen[bytes] | Fork | None = None
    deaths: int = 0
    restart_at: float = 0.0


class Supervisor:
    """The processes of one data folder. Their output goes to `logs/NAME.log` in it."""

    def __init__(self, data: Path, say: Callable[[str], None], stopped: threading.Event) -> None:
        """stopped: once it is set, every wait of the supervisor raises `Stopped`."""
        self._say = say
        self._stopped = stopped
        self._logs = data / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._record = data / "processes.json"
        self._processes: list[Process] = []
        self._retired: list[Process] = []

    def stop_leftovers(self) -> None:
        """Stop the processes that a killed run has left behind in this folder."""
        leftovers: list[psutil.Process] = []
        with contextlib.suppress(FileNotFoundError, ValueError):
            for name, pid, created, stop_signal in json.loads(self._record.read_text()):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    process = psutil.Process(pid)
                    if abs(process.create_time() - created) < 1 and _is_alive(process):
                        self._say(f"stopping {name}, left behind by an earlier run (process {pid})")
                        process.send_signal(stop_signal)
                        leftovers.append(process)
        deadline = time.monotonic() + STOP_SECONDS
        for process in leftovers:
            while _is_alive(process) and time.monotonic() < deadline:
                self._pause(0.02)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def start(self, process: Process, *, keep_log: bool = False) -> None:
        """Start a process and keep it running."""
        self._processes.append(process)
        self._spawn(process, "ab" if keep_log else "wb")

    def retire(self, process: Process) -> None:
        """Tell a process that is no longer needed to finish its work and end."""
        self._processes.remove(process)
        self._retired.append(process)
        _popen(process).send_signal(process.stop_signal)

    def wait_for_retired(self) -> None:
        """Wait until all retired processes have ended. Kill those that do not end in time."""
        self._wait_for(self._retired)
        self._retired.clear()

    def restart(self, process: Process) -> None:
        """Stop a process and start it again."""
        _popen(process).send_signal(process.stop_signal)
        self._wait_for([process])
        self._spawn(process, "ab")

    def wait_until_ready(self, *processes: Process, seconds: float) -> None:
        """Wait until processes are ready. Raises StartFailed if one ends or is not ready in time."""
        deadline = time.monotonic() + seconds
        for process in processes:
            while not process.is_ready():
                if _popen(process).poll() is not None:
                    code = _popen(process).returncode
                    raise StartFailed(f"{process.name} ended with {code}{self._last_lines(process)}")
                if time.monotonic() > deadline:
                    raise StartFailed(f"{process.name} is not ready after {seconds:.0f} s{self._last_lines(process)}")
                self._pause(0.02)

    def run_to_the_end(self, process: Process) -> None:
        """Run a process that ends by itself. Raises StartFailed if it fails."""
        self.start(process)
        while _popen(process).poll() is None:
            self._pause(0.02)
        self._processes.remove(process)
        if _popen(process).returncode:
            raise StartFailed(f"{process.name} failed{self._last_lines(process)}")

    def restart_the_dead(self) -> None:
        """Restart processes that have died, each time after a longer delay."""
        self._retired = [process for process in self._retired if _is_running(process)]
        for process in self._processes:
            if _popen(process).poll() is None:
                continue
            if not process.restart_at:
                process.deaths += 1
                wait = min(MAX_BACKOFF_SECONDS, 0.1 * 2**process.deaths)
                process.restart_at = time.monotonic() + wait
                self._say(f"{process.name} has ended ({_popen(process).returncode}); starting it again in {wait:.1f} s")
            elif time.monotonic() >= process.restart_at:
                process.restart_at = 0.0
                self._spawn(process, "ab")

    def stop(self) -> None:
        """Stop all: first our processes together, then the servers below them. Kill those that do not end in time."""
        for wave in (False, True):
            running = [process for process in self._processes if process.is_server == wave and _is_running(process)]
            for process in running:
                _popen(process).send_signal(process.stop_signal)
            self._wait_for(running if wave else [*self._retired, *running])
        self._processes.clear()
        self._retired.clear()
        self._record.unlink(missing_ok=True)

    def _wait_for(self, ending: Sequence[Process]) -> None:
        """Wait for processes that were told to end. Kill those that do not end in time."""
        deadline = time.monotonic() + STOP_SECONDS
        for process in ending:
            try:
                _popen(process).wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"{process.name} does not stop; killing it")
                os.killpg(_popen(process).pid, signal.SIGKILL)
                _popen(process).wait()

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Stopped

    def _spawn(self, process: Process, mode: str) -> None:
        with (self._logs / f"{process.name}.log").open(mode) as log:
            # A new session: Ctrl-C in the terminal reaches only this process, which stops the others in order.
            if process.module:
                process.popen = Fork(process.name, process.module, process.environment, log)
            else:
                process.popen = subprocess.Popen(
                    [str(part) for part in process.command],
                    env=process.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        running = [other for other in (*self._processes, *self._retired) if _is_running(other)]
        unfinished = self._record.with_suffix(".unfinished")
        unfinished.write_text(
            json.dumps([[other.name, _popen(other).pid, _created(other), other.stop_signal] for other in running])
        )
        unfinished.rename(self._record)

    def _last_lines(self, process: Process) -> str:
        path = self._logs / f"{process.name}.log"
        lines = path.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
        return "".join(f"\n    {line}" for line in [f"the end of {path}:", *lines])


def _popen(process: Process) -> subprocess.Popen[bytes] | Fork:
    if process.popen is None:
        raise RuntimeError(f"{process.name} was never started")
    return process.popen


def _is_alive(process: psutil.Process) -> bool:
    # A zombie counts as dead: nothing may reap the children of a killed run.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_running(process: Process) -> bool:
    return process.popen is not None and process.popen.poll() is None


def _created(process: Process) -> float:
    try:
        return psutil.Process(_popen(process).pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0
