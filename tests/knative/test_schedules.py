"""Schedules where Knative Eventing is not: what fires when, and what becomes of a function that does not take it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from knative.local import scheduler
from knative.local.servers import free_port
from knative.ping import ping
from shared.runtime.manifests import Schedule, schedules
from tests.conftest import ROOT, wait_for
from tests.providers import Answer, Provider, listening

pytestmark = pytest.mark.no_service


@pytest.fixture
def function() -> Iterator[Provider]:
    """A function that takes all, unless it is told otherwise."""
    with listening(lambda _: Answer(204)) as server:
        yield server


def url(function: Provider) -> str:
    """Where to find it, with a place for its name."""
    return f"{function.url}/{{service}}"


def ended(url: str) -> tuple[int, str]:
    """The exit code and the reason of the CronJob's command."""
    command = [sys.executable, "-m", "knative.ping", "clean-up"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"FUNCTION_URL": url, "DELIVERY_KEY": os.environ["DELIVERY_KEY"]},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_function_is_sent_a_binary_cloud_event(function: Provider) -> None:
    assert ended(url(function)) == (0, "")
    (asked,) = function.asked
    headers = asked.headers
    assert (asked.path, asked.body, headers["content-type"]) == ("/clean-up", "{}", "application/json")
    assert (headers["ce-specversion"], headers["ce-type"]) == ("1.0", "dev.knative.sources.ping")
    assert headers["ce-source"] == "/aegis/schedules/clean-up"
    assert headers["ce-id"]


def test_each_firing_is_an_event_of_its_own(function: Provider) -> None:
    ping("clean-up", url(function))
    ping("clean-up", url(function))
    assert len({asked.headers["ce-id"] for asked in function.asked}) == 2


@pytest.mark.parametrize("status", [404, 422, 500, 503])
def test_a_function_that_refuses_is_a_failure_with_the_reason(function: Provider, status: int) -> None:
    function.answers = [Answer(status)]
    code, reason = ended(url(function))
    assert code == 1
    assert f"answered {status}" in reason


def test_a_function_that_is_not_there_is_a_failure_with_the_reason() -> None:
    code, reason = ended(f"http://127.0.0.1:{free_port()}/{{service}}")
    assert code == 1
    assert "cannot be reached" in reason


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T18:07:00+00:00"),
        ("2026-01-01T18:06:59+00:00", "2026-01-01T18:07:00+00:00"),
        ("2026-01-01T18:07:00+00:00", "2026-01-02T18:07:00+00:00"),
    ],
)
def test_a_schedule_is_read_in_its_own_time_zone(now: str, due: str) -> None:
    nightly = Schedule(name="tested", service="tested", schedule="7 3 * * *", timezone="Asia/Seoul")
    assert scheduler.next_time(nightly, datetime.fromisoformat(now)) == datetime.fromisoformat(due)


def test_every_schedule_can_be_read() -> None:
    now = datetime.now(UTC)
    assert all(scheduler.next_time(schedule, now) > now for schedule in schedules())


def test_a_schedule_fires_when_its_time_comes_and_stops_when_told(function: Provider) -> None:
    every_minute = Schedule(name="tested", service="tested", schedule="* * * * *", timezone="Etc/UTC")
    clock = [datetime(2026, 1, 1, 0, 0, 59, 900_000, UTC)]
    stopped = threading.Event()

    def now() -> datetime:
        clock[0] += timedelta(milliseconds=10)
        return clock[0]

    thread = threading.Thread(target=scheduler.run, args=(every_minute, url(function), stopped, now))
    thread.start()
    wait_for(lambda: function.asked)
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
    assert [asked.path for asked in function.asked] == ["/tested"]


def test_a_function_that_fails_does_not_end_its_schedule(function: Provider) -> None:
    function.answer = lambda _: Answer(500)
    every_minute = Schedule(name="tested", service="tested", schedule="* * * * *", timezone="Etc/UTC")
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    stopped = threading.Event()

    def now() -> datetime:
        clock[0] += timedelta(seconds=61)
        return clock[0]

    thread = threading.Thread(target=scheduler.run, args=(every_minute, url(function), stopped, now))
    thread.start()
    wait_for(lambda: len(function.asked) > 2)
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
