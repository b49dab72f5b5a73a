"""What Knative is compared with: the guide's Deployment and HPA, whose one process does all that the functions do."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from knative.check import problems_of
from knative.keys import write_secrets
from knative.kubernetes.cluster import key
from knative.kubernetes.overlays import OVERLAYS, render
from knative.local.servers import LOOPBACK, free_port
from loadtests import compare
from loadtests.compare import HPA, KNATIVE, SIDES, Pods, Side
from shared.events.delivery_tokens import authorization
from tests.browser import needs_chromium
from tests.conftest import PASSWORD, ROOT, create_user, envelope, mailed_token, wait_for
from tests.loadtests.test_report import a_run

GUIDE = {"min": 3, "max": 10, "cpu": 70, "memory": 80}


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[tuple[str, str, str], dict[str, Any]]]:
    """What each side consists of."""
    write_secrets(OVERLAYS / "development" / "data" / "secrets.env")
    return {side.folder: {key(one): one for one in render(SIDES / side.folder)} for side in (KNATIVE, HPA)}


def test_both_sides_are_sound(objects: dict[str, dict[tuple[str, str, str], dict[str, Any]]]) -> None:
    for side in (KNATIVE, HPA):
        assert list(problems_of(list(objects[side.folder].values()))) == []


def test_the_deployment_is_the_guides(objects: dict[str, dict[tuple[str, str, str], dict[str, Any]]]) -> None:
    scaler = objects["hpa"]["autoscaling/v2", "HorizontalPodAutoscaler", "user-service"]["spec"]
    targets = {one["resource"]["name"]: one["resource"]["target"]["averageUtilization"] for one in scaler["metrics"]}
    assert {"min": scaler["minReplicas"], "max": scaler["maxReplicas"], **targets} == GUIDE
    deployment = objects["hpa"]["apps/v1", "Deployment", "user-service"]["spec"]["template"]["spec"]
    (container,) = deployment["containers"]
    assert container["resources"]["requests"]["cpu"] == "100m", "a tenth of the guide's"
    assert container["resources"]["limits"]["cpu"] == "200m", "a tenth of the guide's"


def test_the_sides_differ_in_nothing_else(objects: dict[str, dict[tuple[str, str, str], dict[str, Any]]]) -> None:
    knative, hpa = objects["knative"], objects["hpa"]
    changed = {name for name in knative if knative[name] != hpa[name]}
    assert {name[1:] for name in changed} == {("Gateway", "api"), ("Deployment", "dispatcher")}
    dispatchers = [side["apps/v1", "Deployment", "dispatcher"]["spec"]["template"]["spec"] for side in (knative, hpa)]
    before, after = ({one["name"]: one for one in pod["containers"][0]["env"]} for pod in dispatchers)
    assert [name for name in before if before[name] != after[name]] == ["FUNCTION_URL"]
    added = {name[1] for name in hpa.keys() - knative.keys()}
    assert added == {
        "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "HTTPRoute", "NetworkPolicy",
    }  # fmt: skip


@pytest.fixture(scope="module")
def every_function() -> Iterator[str]:
    """The process of the Deployment; its address."""
    url = f"http://{LOOPBACK}:{(port := free_port())}"
    process = subprocess.Popen(
        [sys.executable, str(SIDES / "hpa" / "every_function.py")],
        env={**os.environ, "PORT": str(port), "HOST": LOOPBACK, "PYTHONPATH": str(ROOT), "THREADS": "4"},
    )

    def is_up() -> bool:
        with suppress(OSError):
            return call(url, "GET", "/health/live")[0] == 200
        assert process.poll() is None
        return False

    wait_for(is_up)
    yield url
    process.terminate()
    process.wait(30)


def call(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            content = response.read()
            return response.status, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or "null")


def test_one_process_serves_all_functions(every_function: str, address: str) -> None:
    credentials = {"email": address, "password": PASSWORD}
    assert call(every_function, "POST", "/api/v1/users", credentials)[0] == 202
    verification = {"token": mailed_token(address), "password": PASSWORD}
    assert call(every_function, "POST", "/api/v1/users/email/verify", verification)[0] == 204
    status, tokens = call(every_function, "POST", "/api/v1/users/login", credentials)
    assert status == 200
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    status, profile = call(every_function, "GET", "/api/v1/users/me", **bearer)
    assert (status, profile["email"]) == (200, address)
    _, sessions = call(every_function, "GET", "/api/v1/users/me/sessions", **bearer)
    path = f"/api/v1/users/me/sessions/{sessions['sessions'][0]['id']}"
    assert call(every_function, "DELETE", path, **bearer)[0] == 204


def test_one_process_takes_events_and_refuses_what_has_no_route(every_function: str, address: str) -> None:
    user = create_user(address)
    event = envelope("com.aegis.user.phone_code_requested.v1", subject=str(user.id), time="2026-01-01T00:00:00Z")
    anonymous = call(every_function, "POST", "/send-sms/", {"user_id": str(user.id)}, **event)
    assert anonymous[0] == 401
    event |= authorization("send-sms")
    assert call(every_function, "POST", "/send-sms/", {"user_id": str(user.id)}, **event)[0] == 204
    assert call(every_function, "GET", "/nowhere")[1]["type"] == "urn:aegis:problem:not-found"
    assert call(every_function, "DELETE", "/api/v1/users/me")[0] == 405


def a_side(side: Side, pods: list[int]) -> Side:
    seen = [Pods(second=float(second), count=count, cpu=count * 0.1) for second, count in enumerate(pods)]
    return Side(side.name, side.folder, side.host, a_run(), seen)


def test_seconds_are_bad_that_are_slow_or_without_an_answer() -> None:
    side = a_side(KNATIVE, [1])
    assert side.bad_seconds == 20
    side.run["over_time"]["p95"][:5] = [None, None, 90, None, 90]
    assert side.bad_seconds == 21, "nobody asked in the first two"


def test_pods_count_for_as_long_as_they_are_there() -> None:
    side = a_side(KNATIVE, [0, 2, 2, 4, 0])
    assert (side.pod_seconds, side.most_pods) == (8, 4)
    assert side.cpu_seconds == pytest.approx(0.8)


def test_what_lacks_for_a_comparison_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert "Cannot read a kube context" in str(ended.value)


def test_the_deployment_has_its_three_pods_all_day_and_a_function_none_at_rest() -> None:
    assert a_side(KNATIVE, [0, 2, 2, 0]).of_a_day(2) == 2 * 4
    assert a_side(HPA, [3, 3, 5, 3]).of_a_day(2) == 2 * 11 + 3 * (86_400 - 2 * 1200)


@needs_chromium
def test_the_document_has_the_figures_and_the_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "DOCUMENT", tmp_path / "knative-vs-hpa.md")
    compare.write(a_side(KNATIVE, [0, 2, 2, 0]), a_side(HPA, [3, 3, 5, 3]))
    text = (tmp_path / "knative-vs-hpa.md").read_text()
    assert "| pod-seconds, spike and quiet time | 11 | 4 | 0.36 | at most 0.5 |" in text
    plots = re.findall(r"\]\((\S+\.svg)\)", text)
    assert len(plots) == 2
    for plot in plots:
        drawn = (tmp_path / plot).read_text()
        assert drawn.startswith("<svg")
        assert "Knative" in drawn
