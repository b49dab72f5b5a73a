"""Runs a scenario and fails exactly when an alert of production would fire: `make loadtest`.

    SCENARIO=smoke URL=http://127.0.0.1:8080 python -m loadtests.run

Exits with 0 when all alerts stayed quiet, 1 when one fired, 2 when the run failed or was too small to judge.
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

from loadtests import alerts
from loadtests.alerts import CannotJudge, Judge, Sample
from loadtests.people import AIDS, HOST, USERS, Person
from loadtests.report import write_report
from loadtests.scenarios import SCENARIOS, Scenario, Shape
from loadtests.verdict import NOT_JUDGED, Run, verdict

PROGRESS_SECONDS = 5


def main() -> None:
    name = os.environ.get("SCENARIO") or "smoke"
    url = (os.environ.get("URL") or "http://127.0.0.1:8080").rstrip("/")
    report = Path(os.environ.get("REPORT") or ".local/loadtest.html")
    try:
        scenario = chosen(name)
        check_answers(url)
        with alerts.judge(url, scenario.seconds) as judge:
            run = Run(name, url, judge.description)
            print(f"{name}: up to {scenario.users} people for {scenario.seconds} s against {url}")
            print(f"judged by {judge.description}")
            perform(run, scenario, judge)
    except CannotJudge as error:
        print(f"\nNOT JUDGED: {error}")
        sys.exit(NOT_JUDGED)
    code = verdict(run)
    report.parent.mkdir(parents=True, exist_ok=True)
    write_report(run, report)
    print(f"\n{run.verdict}\nreport: {report.resolve()}")
    sys.exit(code)


def chosen(name: str) -> Scenario:
    """The scenario with this name, with USERS and DURATION (seconds) in place of its own."""
    if name not in SCENARIOS:
        raise CannotJudge(f"There is no scenario {name}; there are {', '.join(SCENARIOS)}.")
    scenario = SCENARIOS[name]
    try:
        users = int(os.environ.get("USERS") or scenario.users)
        seconds = int((os.environ.get("DURATION") or str(scenario.seconds)).removesuffix("s"))
    except ValueError:
        raise CannotJudge("USERS and DURATION are whole numbers, DURATION in seconds.") from None
    return replace(scenario, users=users, seconds=seconds)


def check_answers(url: str) -> None:
    """Refuses a service that nobody answers for."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url + USERS, headers=HOST), timeout=10):  # noqa: S310
            pass
    except urllib.error.HTTPError:
        pass  # an answer, if not a friendly one
    except OSError as error:
        raise CannotJudge(f"Nobody answers at {url} ({type(error).__name__}). Start it: make up.") from None


def perform(run: Run, scenario: Scenario, judge: Judge) -> None:
    """Lets the people come, and notes each second what they meet and what the judge says."""
    environment = Environment(user_classes=[Person], host=run.url, shape_class=Shape(scenario))
    runner = environment.create_local_runner()
    started = time.monotonic()

    def note(name: str, response_time: float, exception: Any, response: Any, **_: Any) -> None:
        if name != AIDS:
            run.samples.append(Sample(int(time.monotonic() - started), name, response_time / 1000, bool(exception)))
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
            run.pods[second] = judge.pods()
            if second >= shown + PROGRESS_SECONDS:
                print(progress(run, shown, second), flush=True)
                shown = second
            gevent.sleep(max(0.05, second + 1 - (time.monotonic() - started)))
    finally:
        runner.quit()


def progress(run: Run, since: int, until: int) -> str:
    recent = [sample for sample in run.samples if since <= sample.second < until]
    latency = alerts.percentile([sample.seconds for sample in recent], 0.95)
    failed = sum(sample.failed for sample in recent)
    active = [f"{alert.name} {alert.function} {alert.state}" for alert in run.alerts[until]]
    return (
        f"{until:4d} s  {run.users[until]:4d} people  {len(recent) / (until - since):6.1f} requests/s"
        f"  p95 {latency * 1000:5.0f} ms  {failed:3d} failed  {', '.join(active) or 'all alerts quiet'}"
    )


if __name__ == "__main__":
    main()
