"""A Prometheus of the run's own gets the rules of production, on a shorter scale of time."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests import rules

pytestmark = pytest.mark.no_service

ALL_SORTS: list[dict[str, Any]] = [
    {
        "name": "objectives",
        "interval": "30s",
        "rules": [
            {"record": "errors:rate1h30m", "expr": "sum(rate(http_requests_total{status=~'[45]..'}[1h30m]))"},
            {"record": "expiry", "expr": "min(certmanager_certificate_expiration_timestamp_seconds) - time()"},
        ],
    },
    {
        "name": "alerts",
        "rules": [
            {
                "alert": "Burns",
                "expr": 'errors:rate1h30m > 14.4 * 0.001 and max_over_time(up{job="a [5m]"}[3d:5m] offset 1h) >= 0',
                "for": "2m",
                "keep_firing_for": "1h",
            },
            {"alert": "Waits", "expr": "max(outbox_oldest_seconds) > 60", "for": "500ms"},
            {"alert": "Fires", "expr": "increase(dead_letters[15s]) > 0"},
            {"alert": "Expires", "expr": "expiry < 86400 * 7", "for": "6h", "labels": {"severity": "warning"}},
            {"alert": "BackupTooOld", "expr": "absent(kube_cronjob_status_last_successful_time)"},
        ],
    },
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of rules, and one of something else."""
    for number, group in enumerate(ALL_SORTS):
        document = {"kind": "PrometheusRule", "spec": {"groups": [group]}}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "monitor.yaml").write_text("kind: PodMonitor\n---\n")
    return tmp_path


def test_every_span_of_time_is_scaled_and_nothing_else(folder: Path) -> None:
    objectives, alerts = rules.scaled(folder)
    assert objectives == {
        "name": "objectives",
        "rules": [
            {"record": "errors:rate1h30m", "expr": "sum(rate(http_requests_total{status=~'[45]..'}[180s]))"},
            ALL_SORTS[0]["rules"][1],
        ],
    }
    burns, waits, fires, expires, _ = alerts["rules"]
    assert burns["expr"].endswith("[8640s:1s] offset 120s) >= 0")
    assert (burns["for"], burns["keep_firing_for"]) == ("4s", "120s")
    assert (waits["expr"], waits["for"]) == ("max(outbox_oldest_seconds) > 60", "0s")
    assert fires == {"alert": "Fires", "expr": "increase(dead_letters[3s]) > 0"}
    assert (expires["for"], expires["labels"]) == ("720s", {"severity": "warning"})


def test_what_time_alone_brings_judges_no_run(folder: Path) -> None:
    assert [rule["alert"] for rule in rules.alerting(folder)] == ["Burns", "Waits", "Fires", "Expires", "BackupTooOld"]
    assert [rule["alert"] for rule in rules.judging(folder)] == ["Burns", "Waits", "Fires"]


@pytest.mark.parametrize(("duration", "seconds"), [("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("3d", 259200)])
def test_durations_are_those_of_prometheus(duration: str, seconds: float) -> None:
    assert rules.seconds(duration) == seconds


@pytest.mark.parametrize("duration", ["", "5", "m", "5 m", "five"])
def test_what_is_no_duration_is_refused(duration: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        rules.seconds(duration)


def test_the_thresholds_are_those_of_the_rules_of_production() -> None:
    assert rules.threshold(rules.LATENCY) == 1
    assert rules.threshold(rules.ERRORS) == 0.1
    assert 1 in rules.latency_thresholds()


def expressions(folder: Path, run_seconds: float) -> dict[str, str]:
    groups = rules.scaled(folder, run_seconds)
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"] if "alert" in rule}


def test_a_short_run_is_not_judged_by_what_looks_back_further(tmp_path: Path) -> None:
    recorded = [{"record": f"burn:{window}", "expr": f"sum(rate(errors_total[{window}]))"} for window in ("1h", "6h")]
    alerts = [
        {"alert": "Now", "expr": '(up{job="this or that"} or vector(0)) < 1'},
        {"alert": "Fast", "expr": "(burn:1h > 14\n  and x > 1)\nor (burn:6h > 6 and x > 1)"},
        {"alert": "Slow", "expr": "burn:6h > 1"},
    ]
    document = {"kind": "PrometheusRule", "spec": {"groups": [{"name": "all", "rules": [*recorded, *alerts]}]}}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(document))
    now = {"Now": alerts[0]["expr"]}
    assert expressions(tmp_path, 30) == now
    assert expressions(tmp_path, 120) == now | {"Fast": "(burn:1h > 14\n  and x > 1)"}
    assert expressions(tmp_path, 720) == {alert["alert"]: alert["expr"] for alert in alerts}
    assert rules.too_long_for(30, tmp_path) == ["Fast", "Slow"]
