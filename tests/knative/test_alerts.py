"""The alerting rules: each fires when it should and is silent when it should be (promtool)."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests.alerts import RULES, rules, scaled_rules
from shared import metrics

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="NO PROMTOOL: install Prometheus to test the alerting rules")

LABELS = 'service="user-service", method="POST", endpoint="/api/v1/users/login"'


def requests(function: str, status: int, per_minute: int) -> dict[str, str]:
    name = f'http_requests_total{{{LABELS}, function="{function}", status="{status}"}}'
    return {"series": name, "values": f"0+{per_minute}x30"}


def durations(function: str, under_a_second: int, over: int, pod: str = "a") -> list[dict[str, str]]:
    """Requests a minute that took less than a second, and between one and two."""
    labels = f'{LABELS}, function="{function}", status="200", pod="{pod}"'
    counts = {"0.5": under_a_second, "1": under_a_second, "2": under_a_second + over, "+Inf": under_a_second + over}
    return [
        {"series": f'http_request_duration_seconds_bucket{{{labels}, le="{edge}"}}', "values": f"0+{count}x30"}
        for edge, count in counts.items()
    ]


def restarts(values: str) -> dict[str, str]:
    labels = 'namespace="aegis-user-service", pod="login-1", container="function"'
    return {"series": f"kube_pod_container_status_restarts_total{{{labels}}}", "values": values}


def dead_letters(function: str, values: str, pod: str = "a") -> dict[str, str]:
    return {"series": f'dead_letters{{service="user-service", function="{function}", pod="{pod}"}}', "values": values}


CASES: list[tuple[str, str, list[dict[str, str]], set[str]]] = [
    (
        "a tenth of the requests fails",
        "UserServiceHighErrorRate",
        [requests("login", 200, 89), requests("login", 503, 11)],
        {"login"},
    ),
    ("fewer fail", "UserServiceHighErrorRate", [requests("login", 200, 95), requests("login", 503, 5)], set()),
    (
        "many errors among very many requests",
        "UserServiceHighErrorRate",
        [requests("login", 200, 60000), requests("login", 500, 600)],
        set(),
    ),
    (
        "one function fails, another does not",
        "UserServiceHighErrorRate",
        [requests("login", 500, 10), requests("register", 200, 1000)],
        {"login"},
    ),
    ("callers err", "UserServiceHighErrorRate", [requests("login", 401, 100)], set()),
    ("one in ten is slow", "UserServiceHighLatency", durations("login", 90, 10), {"login"}),
    ("one in fifty is slow", "UserServiceHighLatency", durations("login", 98, 2), set()),
    (
        "one pod of many has one slow request",
        "UserServiceHighLatency",
        durations("login", 1000, 0) + durations("login", 0, 1, pod="b"),
        set(),
    ),
    ("no requests at all", "UserServiceHighLatency", durations("login", 0, 0), set()),
    (
        "a pod restarts again and again",
        "UserServicePodCrashLooping",
        [restarts("0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10")],
        {""},
    ),
    (
        "an event became a dead letter",
        "UserServiceDeadLetters",
        [dead_letters("send_email", "0x9 1x20"), dead_letters("send_email", "0x9 1x20", pod="b")],
        {"send_email"},
    ),
    (
        "the dead letters were retried",
        "UserServiceDeadLetters",
        [dead_letters("send_email", "2x9 _x20"), dead_letters("send_sms", "1x9 0x20")],
        set(),
    ),
    ("a pod restarted once", "UserServicePodCrashLooping", [restarts("0 0 1x18")], set()),
]


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "series", "functions"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_an_alert_fires_when_it_should_and_only_then(
    tmp_path: Path, alert: str, series: list[dict[str, str]], functions: set[str]
) -> None:
    rule = next(rule for rule in rules() if rule["alert"] == alert)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    expected: list[dict[str, Any]] = []
    query = f'count by (function) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    for function in functions:
        expected.append({"labels": f'{{function="{function}"}}' if function else "{}", "value": 1})
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [{"expr": query, "eval_time": "20m", "exp_samples": expected}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [PROMTOOL or "", "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert rule["annotations"].keys() == {"summary", "description"}


@needs_promtool
def test_the_rules_are_valid_as_they_are_and_scaled_for_a_load_test(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    (tmp_path / "scaled.yaml").write_text(yaml.safe_dump({"groups": [{"name": "scaled", "rules": scaled_rules()}]}))
    for file in ("rules.yaml", "scaled.yaml"):
        subprocess.run([PROMTOOL or "", "check", "rules", file], cwd=tmp_path, check=True, capture_output=True)


def test_a_bucket_edge_is_at_the_threshold_of_the_latency_alert() -> None:
    from loadtests.alerts import LATENCY, threshold

    assert threshold(LATENCY) in metrics.BUCKETS
