"""A load test fails exactly when an alert of production would fire."""

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
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from loadtests import run
from loadtests.alerts import LocustOnly, Sample, about
from loadtests.rules import ERRORS, LATENCY
from loadtests.scenarios import SCENARIOS
from loadtests.verdict import Run, verdict
from tests.conftest import DATA, ROOT, until_stopped
from tests.knative.test_up import Up, running


def load_test(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.run"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@contextmanager
def locked_accounts(data: Path, seconds: float) -> Iterator[None]:
    """Makes every statement on accounts wait for up to so many seconds, as a long transaction of somebody else does.

    A request gives up after 1.25 s, with a 503.
    """
    url = json.loads((data / "environment.json").read_text())["DATABASE_URL"]
    engine = create_engine(url.replace("postgresql:", "postgresql+pg8000:"))

    def lock(stopped: threading.Event) -> None:
        while not stopped.is_set():
            with engine.begin() as connection:
                connection.execute(text("LOCK TABLE account IN ACCESS EXCLUSIVE MODE"))
                stopped.wait(seconds)
            time.sleep(0.01)

    try:
        with until_stopped(lock):
            yield
    finally:
        engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("with_prometheus", [True, False])
def test_slow_functions_and_failing_ones_fail_the_run_and_good_ones_do_not(
    tmp_path: Path, with_prometheus: bool
) -> None:
    if with_prometheus and not shutil.which("prometheus"):
        pytest.skip("NO PROMETHEUS: install it to test the alert check as it is in production")
    data, report = tmp_path / "data", tmp_path / "report.html"

    def judged(up: Up, seconds: int, users: int) -> subprocess.CompletedProcess[str]:
        return load_test(
            URL=f"http://127.0.0.1:{up.port}",
            DATA_DIR=str(data),
            USERS=str(users),
            DURATION=str(seconds),
            REPORT=str(report),
            PATH=os.environ["PATH"] if with_prometheus else "",
        )

    # The weaker check looks back ten seconds, at no fewer than twenty requests of a function.
    seconds, users = (27, 8) if with_prometheus else (15, 30)
    with running(data) as up:
        with locked_accounts(data, seconds=1.2):
            slow = judged(up, seconds, users)
        assert slow.returncode == 1, slow.stdout + slow.stderr
        assert re.search(rf"FIRED: .*{LATENCY} for \w+, first after \d+ s", slow.stdout), slow.stdout
        assert any(spell["alert"] == LATENCY for spell in figures(report)["alerts"])
        with locked_accounts(data, seconds=60):
            failing = judged(up, seconds, users)
        assert failing.returncode == 1, failing.stdout + failing.stderr
        assert re.search(rf"FIRED: .*{ERRORS} for \w+, first after \d+ s", failing.stdout), failing.stdout
        good = judged(up, 18, 8)
        assert good.returncode == 0, good.stdout + good.stderr
        assert "no alert fired" in good.stdout
    assert ("THE WEAKER CHECK" in good.stdout) is not with_prometheus
    assert figures(report)["exit_code"] == 0
    assert figures(report)["verdict"] in good.stdout


def figures(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.with_suffix(".json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "functions", "says"),
    [
        ("mixed", {"list_users", "login_with_second_factor", "register"}, "mixed: up to 6 people for 16 s"),
        ("login-storm", {"register", "logout", "login"}, "login-storm: up to 6 people"),
    ],
)
def test_a_scenario_runs_against_make_up(scenario: str, functions: set[str], says: str, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = load_test(
        SCENARIO=scenario,
        URL=os.environ["PUBLIC_URL"],
        DATA_DIR=str(DATA),
        USERS="6",
        DURATION="16s",
        REPORT=str(report),
        PATH="",
    )
    assert report.exists(), done.stdout + done.stderr
    assert says in done.stdout
    recorded = figures(report)
    assert functions <= recorded["functions"].keys()
    # What a person does is never refused; a 503 is for the alerts to judge.
    assert not [reason for reason in recorded["failures"] if not reason.endswith((": 503", ": 504"))]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"URL": "http://127.0.0.1:9"}, "No answer from"),
        ({"USERS": "many"}, "whole number"),
        ({"USERS": "0"}, "whole number"),
        ({"DURATION": "long"}, "such as 5m"),
        ({"COMPARE": "README.md"}, "COMPARE=README.md is not the JSON that an earlier run wrote"),
        ({"SCENARIO": "mixed", "ADMIN_CREATE": "false"}, "Cannot create an administrator"),
        ({"PROMETHEUS_URL": "http://127.0.0.1:9"}, "cannot see an alert that takes 300 s to fire: set DURATION=360"),
        ({"PROMETHEUS_URL": "http://127.0.0.1:9", "DURATION": "6m"}, "does not answer"),
    ],
)
def test_a_run_that_says_nothing_exits_with_2(
    settings: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused({"URL": os.environ["PUBLIC_URL"]} | settings, monkeypatch, capsys)


def refused(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run says that ends before anybody comes."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    return capsys.readouterr().out


def test_a_scenario_that_is_none_lists_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused({"SCENARIO": "earthquake"}, monkeypatch, capsys)
    assert "There is no scenario earthquake" in said
    assert {line.split()[0] for line in said.splitlines() if line.startswith("  ")} == SCENARIOS.keys()


def test_make_up_has_nothing_that_scales_from_zero(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(DATA))
    run.wait_for_zero(os.environ["PUBLIC_URL"], LocustOnly())
    assert "nothing scales from zero here" in capsys.readouterr().out


def run_of(*samples: Sample, **more: Any) -> Run:
    return Run("smoke", "http://127.0.0.1", "nobody", samples={5: list(samples)}, users={5: 10}, **more)


def samples(count: int, seconds: float, failed: int = 0) -> list[Sample]:
    return [Sample("login", seconds, number < failed) for number in range(count)]


def test_people_who_fail_without_an_alert_are_no_success() -> None:
    """A refusal is a 4xx, which no alert counts; but then nobody did what they came for."""
    in_vain = run_of(*samples(1000, 0.1, failed=101), errors={"login: 401": 101})
    assert verdict(in_vain) == 2
    assert "login: 401 (101)" in in_vain.verdict


def test_a_run_without_requests_is_no_success() -> None:
    empty = run_of()
    assert verdict(empty) == 2
    assert "0 of 0 requests succeeded" in empty.verdict


def test_what_fired_before_the_run_is_named_and_not_held_against_it() -> None:
    active = {second: LocustOnly().alerts({5: samples(100, 1.1)}, 5) for second in (4, 5)}
    (alert,) = active[5]
    blamed = run_of(*samples(100, 1.1), alerts=active)
    assert verdict(blamed) == 1
    assert f"FIRED: {LATENCY} for login, first after 4 s with 1.1." in blamed.verdict
    innocent = run_of(*samples(100, 1.1), alerts=active, before=frozenset({alert.subject}))
    assert verdict(innocent) == 0
    assert f"Ignored, as active before the run: {LATENCY} for login" in innocent.verdict


def test_the_weaker_check_has_the_same_thresholds() -> None:
    def alerts(own: list[Sample], now: int = 5) -> list[str]:
        return [alert.subject.alert for alert in LocustOnly().alerts({5: own}, now)]

    assert alerts(samples(100, 0.9)) == []
    assert alerts(samples(100, 1.1)) == [LATENCY]
    assert alerts(samples(100, 0.1, failed=11)) == [ERRORS]
    assert alerts(samples(100, 1.1), now=60) == []
    assert alerts(samples(5, 1.1)) == [], "of five requests, the 95th percentile is the slowest one"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"function": "login", "severity": "warning"}, "login"),
        ({"pod": "relay-0", "namespace": "aegis-user-service"}, "relay-0"),
        ({"replica": "b", "severity": "warning", "slo": "reads"}, "replica b, slo reads"),
        ({"severity": "critical", "service": "user-service"}, "the service"),
    ],
)
def test_an_alert_says_what_it_is_about(labels: dict[str, str], said: str) -> None:
    assert about({"alertname": LATENCY, **labels}) == said
