"""The start of a get_profile server: time to its first answer, and memory."""

import compileall
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from knative.local.up import ROOT
from tests.bench import client, people, servers
from tests.bench.figures import Figure, beside, in_turns
from tests.bench.servers import BASELINES, Start
from tests.bench.serving import fill_cache, read_profile

STARTS, MEMORIES = 10, 3
FEW, MANY = 1_000, 100_000


def measure() -> list[Figure]:
    # As in the image, and also if PYTHONDONTWRITEBYTECODE is set.
    compileall.compile_file(ROOT / "main.py", quiet=1)
    for folder in (ROOT / "functions", ROOT / "shared", BASELINES):
        compileall.compile_dir(folder, quiet=1)
    requests = read_profile(people.users(100))
    with servers.function("get_profile")() as other:

        def ours(measured: Callable[[Start, Sequence[bytes]], float]) -> float:
            """Measure get_profile with all profiles in the cache."""
            fill_cache(other.port, requests)
            return measured(servers.function("get_profile"), requests)

        def hello(measured: Callable[[Start, Sequence[bytes]], float]) -> float:
            return measured(servers.hello(), requests)

        starts = in_turns(STARTS, lambda: ours(_seconds_to_answer), lambda: hello(_seconds_to_answer))
        memories = in_turns(MEMORIES, lambda: ours(_megabytes), lambda: hello(_megabytes))
    return [
        beside("cold_start", "s", "<= 1.25", starts),
        beside("memory", "MB", "<= 1.5", memories),
        _memory_growth(),
    ]


def _seconds_to_answer(start: Start, requests: Sequence[bytes]) -> float:
    """Return the time from exec to the first answer."""
    began = time.perf_counter()
    with start() as server:
        client.rate(server.port, requests[:1])
        return time.perf_counter() - began


def _megabytes(start: Start, requests: Sequence[bytes]) -> float:
    """Return the memory of a server that has answered these requests."""
    with start() as server:
        client.rate(server.port, requests)
        return server.megabytes()


def _memory_growth() -> Figure:
    """Memory of a get_profile server after 100,000 requests, compared with that after 1,000."""
    requests = read_profile(people.users(FEW))
    with servers.function("get_profile")() as server:
        client.rate(server.port, requests)
        few = server.megabytes()
        client.rate(server.port, [*islice(cycle(requests), MANY - FEW)])
        return beside("memory_growth", "MB", "<= 1.05", [(server.megabytes(), few)])
