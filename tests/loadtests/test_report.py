"""The report as a reader sees it, in a browser."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtests.alerts import Alert, CannotJudge, Sample, Subject
from loadtests.record import MOST_STEPS, earlier, record, write
from loadtests.report import write_report
from loadtests.rules import LATENCY
from loadtests.verdict import Run, verdict
from tests.browser import needs_chromium

pytestmark = pytest.mark.no_service

if TYPE_CHECKING:
    from playwright.sync_api import Page

SLOW = Subject(LATENCY, "login")


def a_run(seconds: int = 60) -> dict[str, Any]:
    """Of a spike in which log-in was slow: pending from a third on, firing from the half until two thirds."""
    run = Run("spike", "http://127.0.0.1:8080", "a Prometheus of this run's own")
    for second in range(seconds):
        is_slow = seconds // 3 <= second < 2 * seconds // 3
        run.users[second] = 100 if is_slow else 10
        run.samples[second] = [
            *[Sample("get_profile", 0.02, False)] * 20,
            *[Sample("login", 1.7 if is_slow else 0.09, is_slow and number == 0) for number in range(3)],
        ]
        state = "firing" if second >= seconds // 2 else "pending"
        run.alerts[second] = [Alert(SLOW, state, 1.7)] if is_slow else []
        run.pods[second] = {"login": 4 if is_slow else 1, "get_profile": 1}
    run.errors["login: 503"] = seconds // 3
    return record(run, verdict(run))


def test_the_figures_tell_the_run() -> None:
    recorded = a_run()
    assert recorded["exit_code"] == 1
    assert recorded["functions"]["login"] | {"max": 0} == {
        "requests": 180, "failed": 20, "p50": 90, "p95": 1700, "p99": 1700, "max": 0,
    }  # fmt: skip
    assert [(spell["state"], spell["from"], spell["until"]) for spell in recorded["alerts"]] == [
        ("pending", 20, 30),
        ("firing", 30, 40),
    ]
    assert recorded["over_time"]["requests"] == [23] * 60
    assert recorded["pods"]["login"][19:21] == [1, 4]
    assert json.loads(json.dumps(recorded)) == recorded


def test_the_figures_of_a_long_run_stay_few() -> None:
    recorded = a_run(seconds=2 * MOST_STEPS + 1)
    assert recorded["step"] == 3
    assert len(recorded["over_time"]["p95"]) == len(recorded["pods"]["login"]) <= MOST_STEPS
    assert recorded["over_time"]["requests"][5] == 23, "a second"


def test_what_no_run_wrote_is_compared_with_nothing(tmp_path: Path) -> None:
    assert earlier(None) is None
    write(a_run(), tmp_path / "run.json")
    found = earlier(str(tmp_path / "run.json"))
    assert found
    assert found["scenario"] == "spike"
    (tmp_path / "other.json").write_text("[]")
    for path in ("other.json", "nowhere.json"):
        with pytest.raises(CannotJudge, match="is not the JSON that an earlier run wrote"):
            earlier(str(tmp_path / path))


@needs_chromium
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_the_report_opens_on_a_phone_without_a_network_and_shows_all_plots(
    page: "Page", tmp_path: Path, colors: Any
) -> None:
    file = tmp_path / "report.html"
    write_report(a_run(), a_run(seconds=45), file)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme=colors)
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg .cartesianlayer').length >= 5")
    assert page.title().startswith("FIRED: load test spike")
    assert complaints == []
    assert asked == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
    plots = page.locator(".js-plotly-plot")
    drawn = page.locator(".js-plotly-plot .scatterlayer .trace .js-line")
    assert plots.count() == 5
    assert all((box := plots.nth(number).bounding_box()) and box["height"] > 200 for number in range(5))
    assert drawn.count() >= 10
    text = page.inner_text("body")
    for said in ("100", "login: 503 × 20", "pending", "firing", "Pods of each function", "p95 then"):
        assert said in text
    assert page.locator(".shapelayer path").count() >= 5, "bands of the alert, and thresholds"
