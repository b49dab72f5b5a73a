"""Serve edits in functions/ and shared/ while `make up` runs."""

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from knative.local import fork
from knative.local.router import SITE
from knative.local.supervisor import Process, StartFailed, Supervisor

ROOT = Path(__file__).parents[2]
_FOLDERS = (ROOT / "functions", ROOT / "shared")
_SUFFIXES = (".py", ".toml", ".html", ".json")
# Modules of shared register metrics, and each name can be registered only once.
_PACKAGES = ("functions", "shared", "knative", "prometheus_client")
_SETTLE_SECONDS = 0.05
_READY_SECONDS = 30.0
_DRAIN_SECONDS = 0.5
"""How long the router may still send requests to a replaced process."""

State = dict[Path, tuple[int, int]]


@dataclass
class Served:
    """A process that the router sends requests to."""

    process: Process
    port: int
    spare_port: int
    """The port of its successor."""


class Edits:
    """Replaces processes whose code has changed. If the new code does not start, the old process stays."""

    def __init__(
        self,
        supervisor: Supervisor,
        served: dict[str, Served],
        others: Collection[Process],
        *,
        modules: Collection[str],
        make: Callable[[str, int], Process],
        direct: Callable[[str, int], None],
        say: Callable[[str], None],
    ) -> None:
        """Start watching.

        Args:
            served: the functions and the site, by name.
            others: processes that use shared/ but get no requests from the router.
            modules: the modules that all these processes import.
            make: creates the process of a name, for a port.
            direct: sends new requests for a name to a port.
        """
        self._supervisor, self._served, self._others, self._modules = supervisor, served, others, modules
        self._make, self._direct, self._say = make, direct, say
        self._seen = _state()

    def serve(self) -> None:
        """Serve what was edited since the last call, or print why that is impossible."""
        if not (changed := self._changed()):
            return
        started = time.monotonic()
        paths = [str(path.relative_to(ROOT)) for path in sorted(changed)]
        title = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        is_shared = any(path.startswith("shared/") for path in paths)
        edited = {path.stem for path in changed}
        if new := edited - self._served.keys() - {"__init__"} if not is_shared else set():
            self._say(f"{title}: {', '.join(sorted(new))} has no process yet. Start make up again to serve it.")
        try:
            if fork.IS_SAFE:
                import_anew(_of_packages() if is_shared else {f"functions.{name}" for name in edited}, self._modules)
        except (Exception, SystemExit) as error:
            self._say(f"{title}: cannot be imported; the previous version is still served.\n    {place_of(error)}")
            return
        names = [name for name in self._served if is_shared or name in edited or name == SITE]
        replaced, failed = self._replace(names)
        if replaced and not failed and not new:
            self._say(f"{title}: served after {time.monotonic() - started:.1f} s")
        time.sleep(_DRAIN_SECONDS)
        for process in (*replaced, *failed):
            self._supervisor.retire(process)
        if is_shared and not failed:
            for process in self._others:
                self._supervisor.restart(process)

    def _changed(self) -> set[Path]:
        found = _state()
        if found == self._seen:
            return set()
        last: State = {}
        while found != last:  # an editor or git may still be writing
            time.sleep(_SETTLE_SECONDS)
            last, found = found, _state()
        changed = {path for path, _ in found.items() ^ self._seen.items()}
        self._seen = found
        return changed

    def _replace(self, names: Iterable[str]) -> tuple[list[Process], list[Process]]:
        """Return the replaced processes, and the successors that did not start."""
        self._supervisor.wait_for_retired()  # they use the spare ports
        successors = {name: self._make(name, self._served[name].spare_port) for name in names}
        for process in successors.values():
            self._supervisor.start(process, keep_log=True)
        replaced, failed = [], []
        for name, process in successors.items():
            served = self._served[name]
            try:
                self._supervisor.wait_until_ready(process, seconds=_READY_SECONDS)
            except StartFailed as error:
                # Log lines are JSON; the reason why a process ended is not.
                reason = [line.strip() for line in str(error).splitlines() if not line.strip().startswith("{")][-1]
                self._say(f"{name}: does not start; the previous version is still served.\n    {reason}")
                failed.append(process)
                continue
            self._direct(name, served.spare_port)
            replaced.append(served.process)
            self._served[name] = Served(process, served.spare_port, served.port)
        return replaced, failed


def import_anew(dropped: Collection[str], modules: Iterable[str]) -> None:
    """Import modules, and reload those that are dropped.

    If an import fails, restore the previous state and raise its error.
    """
    before = dict(sys.modules)
    for name in dropped:
        sys.modules.pop(name, None)
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # its timestamps only have seconds
    importlib.invalidate_caches()
    try:
        for module in modules:
            importlib.import_module(module)
    except (Exception, SystemExit):
        for name in _of_packages() - before.keys():
            del sys.modules[name]
        sys.modules.update(before)
        raise
    finally:
        sys.dont_write_bytecode = writes_bytecode


def _of_packages() -> set[str]:
    return {name for name in sys.modules if name.partition(".")[0] in _PACKAGES}


def place_of(error: BaseException) -> str:
    """Return the error on one line, with the file and line in this project that it comes from."""
    file, line = "", 0
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno or 0
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if any(Path(frame.filename).is_relative_to(folder) for folder in _FOLDERS):
                file, line = frame.filename, frame.lineno or 0
    message = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0]
    place = f"{os.path.relpath(file, ROOT)}:{line}: " if file else ""
    return f"{place}{type(error).__name__}: {message}"


def _state() -> State:
    """Return modification time and size of the files in functions/ and shared/."""
    return {path: (found.st_mtime_ns, found.st_size) for folder in _FOLDERS for path, found in _files(folder)}


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__pycache__")):
                continue
            try:
                if entry.is_dir():
                    yield from _files(Path(entry.path))
                elif entry.name.endswith(_SUFFIXES):
                    yield Path(entry.path), entry.stat()
            except FileNotFoundError:  # removed just now
                continue
