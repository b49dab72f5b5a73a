"""A `make up` of its own, whose processes are killed; its supervisor starts them again."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

from knative.local.servers import free_port
from tests.conftest import ROOT, START_SECONDS
from tests.servers import forget_settings

DATA = ROOT / ".local" / "faults"
"""Kept after a run: its logs tell what happened."""
_ADDRESSES = ("DATABASE_URL", "OWNER_DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS")


@dataclass(frozen=True)
class Kill:
    """kill -9 of a process, at a moment of the clock (seconds since 1970)."""

    name: str
    at: float
    is_alone: bool


@dataclass
class Service:
    """The running service, and what of it was killed."""

    process: subprocess.Popen[bytes]
    kills: list[Kill] = field(default_factory=list)
    threads: dict[str, float] = field(default_factory=dict)
    """The most that each process had when something was killed."""
    megabytes: dict[str, float] = field(default_factory=dict)
    """Of memory that is resident, likewise."""

    def processes(self) -> dict[str, psutil.Process]:
        """What runs at this moment, by name."""
        found: dict[str, psutil.Process] = {}
        for name, pid, created, _ in json.loads((DATA / "processes.json").read_text()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                    found[name] = process
        return found

    def kill(self, names: Iterable[str]) -> None:
        """kill -9, with all children; passes over what has not come back from an earlier one yet."""
        running = self.processes()
        for name, process in running.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.threads[name] = max(self.threads.get(name, 0), process.num_threads())
                self.megabytes[name] = max(self.megabytes.get(name, 0), process.memory_info().rss / 1e6)
        # PostgreSQL's children have sessions of their own: all are found first, then killed at once.
        trees = [(name, tree_of(running[name])) for name in names if name in running]
        for name, tree in trees:
            self.kills.append(Kill(name, time.time(), len(trees) == 1))
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def tree_of(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def start() -> Service:
    """Starts it on an empty folder; this process then uses its settings."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in _ADDRESSES}
    with (DATA / "up.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "knative.local.up"],
            cwd=ROOT,
            env=environment | {"PORT": str(free_port()), "DATA_DIR": str(DATA)},
            stdout=log,
            stderr=log,
        )
    settings = DATA / "environment.json"
    deadline = time.monotonic() + START_SECONDS
    while not (settings.exists() and settings.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service does not start:\n{(DATA / 'up.log').read_text()}")
        time.sleep(0.05)
    os.environ.update(json.loads(settings.read_text()))
    forget_settings()
    return Service(process)
