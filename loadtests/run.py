"""Run a scenario and fail exactly when one of production's alerts would fire: `make loadtest`.

    SCENARIO=smoke URL=http://localhost:8080 python -m loadtests.run

Exits with 0 if no alert fired, 1 if one fired, 2 if the run failed or was too small to judge.
"""

import os
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment

from loadtests import alerts, rules
from loadtests.alerts import CannotJudge, Judge, Sample
from loadtests.people import AIDS, HOST, USERS, Administrator, appoint_administrators
from loadtests.record import earlier, record, write
from loadtests.report import write_report
from loadtests.scenarios import SCENARIOS, Scenario, Shape
from loadtests.verdict import NOT_JUDGED, Run, verdict

PROGRESS_SECONDS = 5
TO_ZERO_SECONDS = 480
"""An idle function's last pod stops after its window (60 s), the delay of 300 s, and Knative's grace of 30 s."""


def main() -> None:
    name = os.environ.get("SCENARIO") or "smoke"
    url = (os.environ.get("URL") or "http://localhost:8080").rstrip("/")
    try:
        scenario = chosen(name)
        compared = earlier(os.environ.get("COMPARE"))
        check_answers(url)
        if Administrator in scenario.people:
            appoint_administrators()
        with alerts.judge(url, scenario.seconds) as judge:
            if scenario.from_zero:
                wait_for_zero(url, judge)
            run = Run(name, url, judge.description, judge.before)
            print(f"{name}: up to {scenario.users} people for {scenario.seconds} s against {url}")
            print(f"judged by {judge.description}", flush=True)
            perform(run, scenario, judge)
    except CannotJudge as error:
        print(f"\nNOT JUDGED: {error}")
        sys.exit(NOT_JUDGED)
    code = verdict(run)
    report = Path(os.environ.get("REPORT") or f".local/loadtests/{run.started_at:%Y%m%d-%H%M%S}-{name}.html")
    report.parent.mkdir(parents=True, exist_ok=True)
    recorded = record(run, code)
    write(recorded, report.with_suffix(".json"))
    write_report(recorded, compared, report)
    print(f"\n{run.verdict}\nreport: {report.resolve()}\nfigures: {report.with_suffix('.json').resolve()}")
    sys.exit(code)


def chosen(name: str) -> Scenario:
    """Return the scenario with this name. USERS and DURATION override its values.

    Raises:
        CannotJudge: there is no such scenario, or a value is malformed.
    """
    if name not in SCENARIOS:
        lines = [f"  {known:16} {scenario.says}" for known, scenario in SCENARIOS.items()]
        raise CannotJudge("\n".join([f"There is no scenario {name}. SCENARIO must be one of", *lines]))
    scenario, duration = SCENARIOS[name], os.environ.get("DURATION")
    try:
        users = int(os.environ.get("USERS") or scenario.users)
        seconds = rules.seconds(f"{duration}s" if duration.isdigit() else duration) if duration else scenario.seconds
        if users < 1 or seconds < 1:
            raise ValueError
    except ValueError:
        raise CannotJudge("USERS must be a whole number, and DURATION seconds or a duration such as 5m.") from None
    return replace(scenario, users=users, seconds=int(seconds))


def check_answers(url: str) -> None:
    """Raise CannotJudge if the service does not answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url + USERS, headers=HOST), timeout=10):  # noqa: S310
            pass
    except urllib.error.HTTPError:
        pass  # an error is an answer, too
    except OSError as error:
        raise CannotJudge(f"No answer from {url} ({type(error).__name__}). Start the service: make up") from None


def wait_for_zero(url: str, judge: Judge) -> None:
    """Wait until no function has a pod, or until TO_ZERO_SECONDS have passed."""
    if alerts.is_local(url):
        print("nothing scales from zero here: make up always runs one process per function; judged anyway")
        return
    print(f"waiting until no function has a pod, for at most {TO_ZERO_SECONDS} s", flush=True)
    until = time.monotonic() + TO_ZERO_SECONDS
    while time.monotonic() < until:
        if judge.pods() == {}:
            return
        gevent.sleep(5)


def perform(run: Run, scenario: Scenario, judge: Judge) -> None:
    """Run the scenario, and record each second what users experience and what the judge reports."""
    environment = Environment(user_classes=list(scenario.people), host=run.url, shape_class=Shape(scenario))
    runner = environment.create_local_runner()
    started = time.monotonic()

    def note(name: str, response_time: float, exception: Any, response: Any, **_: Any) -> None:
        if name != AIDS:
            sample = Sample(name, response_time / 1000, bool(exception))
            run.samples[int(time.monotonic() - started)].append(sample)
            if exception:
                reason = f"{name}: {getattr(response, 'status_code', 0) or type(exception).__name__}"
                run.errors[reason] = run.errors.get(reason, 0) + 1

    environment.events.request.add_listener(note)
    runner.start_shape()
    shown = 0
    try:
        while (second := int(time.monotonic() - started)) < scenario.seconds:
            run.users[second] = runner.user_count
            run.alerts[second] = judge.alerts(run.samples, second)
            run.pods[second] = judge.pods() or {}
            if second >= shown + PROGRESS_SECONDS:
                print(progress(run, shown, second), flush=True)
                shown = second
            gevent.sleep(max(0.05, second + 1 - (time.monotonic() - started)))
    finally:
        runner.quit()


def progress(run: Run, since: int, until: int) -> str:
    recent = [sample for second in range(since, until) for sample in run.samples[second]]
    latency = alerts.percentile([sample.seconds for sample in recent], 0.95)
    failed = sum(sample.failed for sample in recent)
    active = [f"{alert.subject} {alert.state}" for alert in run.alerts[until] if alert.subject not in run.before]
    return (
        f"{until:4d} s  {run.users[until]:4d} people  {len(recent) / (until - since):6.1f} requests/s"
        f"  p95 {latency * 1000:5.0f} ms  {failed:3d} failed  {', '.join(active) or 'all alerts quiet'}"
    )


if __name__ == "__main__":
    main()
