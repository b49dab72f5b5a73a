"""The measured servers of one function, and those of the baselines, each in its own processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from knative.local.servers import LOOPBACK, free_port
from knative.local.up import containers

BASELINES = Path(__file__).parent / "baselines"


@dataclass(frozen=True)
class Server:
    port: int
    process: psutil.Process

    def megabytes(self) -> float:
        """Return the resident memory of all its processes, counting shared pages once.

        Not the proportional set size, which other processes with the same libraries would reduce.
        """
        processes = [self.process, *self.process.children(recursive=True)]
        resident = [_kilobytes(process.pid) for process in processes]
        anonymous = sum(one["Pss_Anon"] for one in resident)  # shared only within a family of processes
        files = max(one["Rss"] - one["Anonymous"] for one in resident)
        return (anonymous + files) / 1024


def _kilobytes(pid: int) -> dict[str, int]:
    """Return Linux's summary of a process's memory (proc_pid_smaps_rollup(5))."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}


Start = Callable[[], AbstractContextManager[Server]]


def function(name: str, module: str = "shared.framework.server", **others: str) -> Start:
    """Return a function as in production: with the variables of its manifest and active rate limits, plus `others`."""
    variables = {
        **containers()[name],
        "LOG_LEVEL": "INFO",
        "TRUSTED_PROXY_HOPS": "1",
        "RATE_LIMIT_EXEMPT_NETWORKS": "",
        "GATEWAY_KEY": "",  # requests come without a gateway and state their address
        **others,
    }
    return lambda: _server(lambda _port: [sys.executable, "-m", module], variables)


def baseline(app: str) -> Start:
    """Return an application with only the libraries, under gunicorn with the settings of get_profile.

    gunicorn's command starts hello faster than that of functions-framework.
    """
    threads = containers()["get_profile"]["THREADS"]
    settings = ["--preload", "--worker-class", "gthread", "--threads", threads, "--keep-alive", "120"]
    program = [sys.executable, "-m", "gunicorn", *settings, "--worker-tmp-dir", "/dev/shm"]  # noqa: S108
    return lambda: _server(lambda port: [*program, "--bind", f"{LOOPBACK}:{port}", app], {})


def hello() -> Start:
    """Return the function for functions-framework that does nothing."""
    return baseline(f"functions_framework:create_app('hello', '{BASELINES / 'hello.py'}')")


@contextmanager
def _server(command: Callable[[int], list[str]], variables: dict[str, str]) -> Iterator[Server]:
    """Yield a server that was just started and may not listen yet."""
    port = free_port()
    with (Path(os.environ["DATA_DIR"]) / "logs" / f"server-{port}.log").open("wb") as log:
        process = psutil.Popen(
            command(port), env=os.environ | variables | {"PORT": str(port)}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Server(port, process)
        finally:
            process.terminate()
            process.wait(60)
