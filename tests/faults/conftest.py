"""One run for all checks: people use the service while its processes die, then all settles."""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import pytest

from shared.framework.registry import load_all
from shared.runtime.problems import ServiceUnavailable
from tests.faults import evidence, report, schedule, service
from tests.faults.evidence import Evidence
from tests.faults.people import Load
from tests.faults.schedule import Act
from tests.faults.service import Kill, Service

RATE = 10.0
"""Requests a second: what two cores, shared with the service, answer with room to catch up."""
SETTLE_SECONDS = 100.0
"""An event whose function was away may wait out a claim (30 s) and the longest back-off (60 s)."""


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("no_service")  # it has one of its own


@dataclass(frozen=True)
class Run:
    """What was done, and what came of it."""

    seed: int
    seconds: float
    service: Service
    load: Load
    sent_again_after: list[float]
    """Seconds from each kill of the relay alone to the next event that was sent, where nothing else died before."""
    settled_after: tuple[float | None, float | None]
    """Seconds from the end of each act until all events before it were handled; None when that took too long."""
    evidence: Evidence


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Kills by a schedule drawn from SEED, over SECONDS of load; prints the report."""
    seed = int(os.environ.get("SEED") or secrets.randbelow(10**6))
    seconds = float(os.environ.get("SECONDS") or 200)
    print(f"\nSEED={seed} SECONDS={seconds:.0f} RATE={RATE:.0f}", flush=True)
    running = service.start()
    try:
        load_all()
        load = Load(os.environ["PUBLIC_URL"], RATE, seed)
        first, second = schedule.draw(seed, seconds, running.processes())
        load.start()
        sent_again_after = play(first, running)
        middle = settle(time.time())
        sent_again_after += play(second, running)
        load.stop()
        record(load)
        end = settle(time.time())
        found = Run(seed, seconds, running, load, sent_again_after, (middle, end), evidence.collect())
        print(report.text(found), flush=True)
        yield found
    finally:
        running.stop()


def play(act: Act, service: Service) -> list[float]:
    """Kills as the act says. Returns what `time_to_next_sent` found."""
    started = time.monotonic()
    seconds: list[float] = []
    for moment, names in act:
        time.sleep(max(0.0, started + moment - time.monotonic()))
        service.kill(names)
        if names == ("relay",):
            threading.Thread(target=time_to_next_sent, args=(service.kills, seconds), daemon=True).start()
    time.sleep(max(0.0, started + act.seconds - time.monotonic()))
    return seconds


def time_to_next_sent(kills: list[Kill], seconds: list[float]) -> None:
    """Adds how long it takes from the last kill to the next event that is sent, unless another kill comes before."""
    count, killed_at = len(kills), kills[-1].at
    while len(kills) == count:
        with suppress(ServiceUnavailable):
            if evidence.was_sent_since(killed_at):
                seconds.append(time.time() - killed_at)
                return
        time.sleep(0.05)


def record(load: Load) -> None:
    """Writes down all requests, to be looked up by the id that the logs have."""
    requests = [asdict(ask) | {"email": person.email} for person in load.people for ask in person.asks]
    (service.DATA / "requests.json").write_text(json.dumps(requests, indent=1))


def settle(until: float) -> float | None:
    """How long it takes until every event from before is sent and handled; None when that takes too long.

    until: in seconds since 1970.
    """
    started = time.monotonic()
    while time.monotonic() < started + SETTLE_SECONDS:
        with suppress(ServiceUnavailable):
            if evidence.has_settled(until):
                return time.monotonic() - started
        time.sleep(0.5)
    return None
