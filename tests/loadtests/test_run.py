"""A load test fails exactly when the latency alert would fire."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from loadtests import alerts
from loadtests.alerts import ERRORS, LATENCY, LocustOnly, Sample
from loadtests.verdict import Run, verdict
from shared.manifests import functions
from tests.conftest import ROOT
from tests.knative.test_up import Up, running


def load_test(up: Up, data: Path, report: Path, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "URL": f"http://127.0.0.1:{up.port}",
        "DATA_DIR": str(data),
        "USERS": "8",
        "DURATION": "28",
        "REPORT": str(report),
        "PATH": path,
    }
    command = [sys.executable, "-m", "loadtests.run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@contextmanager
def slow(up: Up, data: Path) -> Iterator[None]:
    """Makes every statement on accounts wait for up to 1.2 s, as a long transaction of somebody else does.

    Most end within a request's 1.25 s: given up, they would be errors and not slow.
    """
    url = json.loads((data / "environment.json").read_text())["DATABASE_URL"]
    engine, stopped = create_engine(url.replace("postgresql:", "postgresql+pg8000:")), threading.Event()

    def lock() -> None:
        while not stopped.is_set():
            with engine.begin() as connection:
                connection.execute(text("LOCK TABLE account IN ACCESS EXCLUSIVE MODE"))
                stopped.wait(1.2)
            time.sleep(0.01)

    thread = threading.Thread(target=lock)
    thread.start()
    yield
    stopped.set()
    thread.join()
    engine.dispose()


@pytest.mark.parametrize("with_prometheus", [True, False])
def test_a_slow_function_fails_the_run_and_a_fast_one_does_not(tmp_path: Path, with_prometheus: bool) -> None:
    if with_prometheus and not shutil.which("prometheus"):
        pytest.skip("NO PROMETHEUS: install it to test the alert check as it is in production")
    path = os.environ["PATH"] if with_prometheus else ""
    data, report = tmp_path / "data", tmp_path / "report.html"
    with running(data) as up:
        with slow(up, data):
            failed = load_test(up, data, report, path)
        assert failed.returncode == 1, failed.stdout + failed.stderr
        assert f"FIRED: {LATENCY} for " in failed.stdout or f"; {LATENCY} for " in failed.stdout
        assert LATENCY in report.read_text()
        passed = load_test(up, data, report, path)
        assert passed.returncode == 0, passed.stdout + passed.stderr
        assert "no alert fired" in passed.stdout
        assert ("THE WEAKER CHECK" in passed.stdout) is not with_prometheus
    html = report.read_text()
    assert "QUIET" in html
    assert "http" not in html.replace(f"http://127.0.0.1:{up.port}", ""), "the report needs something else"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"URL": "http://127.0.0.1:9"}, "Nobody answers"),
        ({"SCENARIO": "earthquake"}, "There is no scenario earthquake"),
        ({"USERS": "many"}, "whole numbers"),
        ({"PROMETHEUS_URL": "http://127.0.0.1:9"}, "cannot see an alert that takes 300 s to fire"),
        ({"PROMETHEUS_URL": "http://127.0.0.1:9", "DURATION": "301"}, "does not answer"),
    ],
)
def test_a_run_that_says_nothing_exits_with_2(settings: dict[str, str], says: str, tmp_path: Path) -> None:
    environment = {**os.environ, "URL": os.environ["PUBLIC_URL"], "REPORT": str(tmp_path / "r.html"), **settings}
    command = [sys.executable, "-m", "loadtests.run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stdout
    assert "Traceback" not in done.stderr


def test_people_who_fail_without_an_alert_are_no_success() -> None:
    """A refusal is a 4xx, which no alert counts; but then nobody did what they came for."""
    run = Run("smoke", "http://127.0.0.1", "nobody", samples(1000, 0.1, failed=101), errors={"login: 401": 101})
    assert verdict(run) == 2
    assert "login: 401 (101)" in run.verdict


def samples(count: int, seconds: float, failed: int = 0) -> list[Sample]:
    return [Sample(5, "login", seconds, number < failed) for number in range(count)]


def test_the_weaker_check_has_the_same_thresholds() -> None:
    judge = LocustOnly()
    assert judge.alerts(samples(100, 0.9), 5) == []
    assert [alert.name for alert in judge.alerts(samples(100, 1.1), 5)] == [LATENCY]
    assert [alert.name for alert in judge.alerts(samples(100, 0.1, failed=11), 5)] == [ERRORS]
    assert judge.alerts(samples(100, 1.1), 60) == []


def test_people_call_what_carries_the_load_and_nothing_that_is_not_there() -> None:
    source = (ROOT / "loadtests" / "people.py").read_text()
    called = set(re.findall(r'self\.send\("(\w+)"', source))
    assert called <= set(functions())
    assert {"register", "verify_email", "login", "refresh_token", "logout", "get_profile"} <= called


def test_windows_and_for_are_scaled_alike() -> None:
    for rule, scaled in zip(alerts.rules(), alerts.scaled_rules(), strict=True):
        assert alerts.seconds(scaled["for"]) * alerts.SCALE == alerts.seconds(rule["for"])
        assert "m]" not in scaled["expr"]
