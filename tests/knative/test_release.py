"""What the release command does before it meets a cluster; tests/cluster/test_release.py has the rest."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from knative.keys import write_secrets
from knative.kubernetes import overlays
from knative.kubernetes.cluster import Cluster
from knative.release import gate, inside, rollout
from knative.release.prepare import prepare
from knative.release.report import table
from knative.terminal import Progress, Refused
from shared.runtime.manifests import functions
from tests.conftest import DATA, ROOT
from tests.knative.environments import ENVIRONMENTS, VERSION, released

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(autouse=True, scope="module")
def secrets() -> None:
    for name in ("development", "staging"):
        write_secrets(overlays.OVERLAYS / name / "data" / "secrets.env")


def aegis(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "PROMETHEUS_URL")}
    return subprocess.run(
        [sys.executable, "-m", "knative.aegis", *arguments],
        cwd=ROOT,
        env=clean | {"HOME": "/nonexistent"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_release_has_one_image_in_every_place_and_leaves_the_servers_theirs(name: str) -> None:
    environment = released(name)
    images = {
        container["image"]
        for one in [*environment.objects, environment.migration]
        for pod in overlays.pods(one)
        for container in pod["containers"]
    }
    assert {image for image in images if "user-service" in image} == {environment.image}
    assert (
        environment.image.endswith(f"/aegis-user-service:{VERSION}")
        or environment.image == f"aegis/user-service:{VERSION}"
    )
    assert len(environment.functions) == len(functions())


def test_a_release_can_be_named_by_its_digest() -> None:
    assert overlays.environment("production", DIGEST).image == f"aegis/user-service@{DIGEST}"


@pytest.mark.parametrize(
    ("name", "tag"), [("nowhere", "v1"), ("production", "v1; rm"), ("production", "sha256:short/1")]
)
def test_what_cannot_be_released_is_refused(name: str, tag: str) -> None:
    with pytest.raises(Refused, match="Nothing was changed"):
        overlays.environment(name, tag)


def test_a_secret_without_values_replaces_none_of_the_cluster() -> None:
    """Who releases needs no secrets: deploy renders empty files as well."""
    environment = copy.deepcopy(released("development"))
    secret = next(one for one in environment.prepared if one["kind"] == "Secret")
    secret["data"] = dict.fromkeys(secret["data"], "")
    with pytest.raises(Refused, match=r"has no values\. Write them with make secrets"):
        prepare(cast(Cluster, None), environment, Progress())


def test_a_new_revision_has_a_tag_until_it_has_all_of_the_traffic_and_then_the_one_before() -> None:
    (login,) = [one for one in released("production").functions if one["metadata"]["name"] == "login"]
    first = rollout.service(login, 12, {"login-r11": 100, "login-r12": 0}, is_live=False)["spec"]
    assert first["template"]["metadata"]["name"] == "login-r12"
    assert first["traffic"] == [
        {"revisionName": "login-r11", "percent": 100},
        {"revisionName": "login-r12", "percent": 0, "tag": "next"},
    ]
    live = rollout.service(login, 12, {"login-r11": 0, "login-r12": 100}, is_live=True)["spec"]
    assert live["traffic"] == [
        {"revisionName": "login-r11", "percent": 0, "tag": "previous"},
        {"revisionName": "login-r12", "percent": 100},
    ]
    assert "name" not in login["spec"]["template"]["metadata"]


def test_a_function_without_an_earlier_revision_can_be_called_by_its_tag_before_the_release_is_live() -> None:
    (login,) = [one for one in released("production").functions if one["metadata"]["name"] == "login"]
    starting = rollout.service(login, 1, {"login-r1": 100}, is_live=False)["spec"]["traffic"]
    assert starting == [{"revisionName": "login-r1", "percent": 100, "tag": "next"}]
    assert rollout.service(login, 1, {"login-r1": 100}, is_live=True)["spec"]["traffic"] == [
        {"revisionName": "login-r1", "percent": 100}
    ]


def test_alert_rules_are_asked_of_the_new_revisions_alone() -> None:
    errors = 'sum by (function) (rate(http_requests_total{service="user-service", status=~"5.."}[5m])) > 0.1'
    asked = gate.of_release(errors, 12, 60)
    assert 'service="user-service", serving_knative_dev_revision=~".+-r12", status' in asked
    assert "[60s]" in asked
    restarts = 'increase(kube_pod_container_status_restarts_total{namespace="aegis-user-service"}[15m]) > 2'
    assert 'pod=~".+-r12-deployment-.+"' in gate.of_release(restarts, 12, 60)
    assert gate.of_release('dead_letters{service="user-service"} > 0', 12, 60) == ""


def function_url() -> str:
    """Where the router of the tests leads to any function, as the addresses of a cluster do."""
    listeners: list[dict[str, Any]] = json.loads((DATA / "router.json").read_text())["static_resources"]["listeners"]
    (port,) = [one["address"]["socket_address"]["port_value"] for one in listeners if one["name"] == "internal"]
    return f"http://127.0.0.1:{port}/{{service}}"


def test_the_smoke_test_calls_every_function_and_prints_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert inside.smoke(functions(), function_url()) == []
    assert set(capsys.readouterr().out.splitlines()) == {f"{name} answers as it should" for name in functions()}


def test_the_smoke_test_names_the_function_that_answers_wrongly() -> None:
    url = function_url().replace("{service}", "login")
    (problem,) = inside.smoke(["get_profile"], url)
    assert problem.startswith("get_profile answers GET /api/v1/users/me with")


def test_the_smoke_test_waits_no_longer_when_a_name_stays_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inside, "NAME_SECONDS", 1.0)
    assert "does not exist in the cluster" in inside.smoke(sorted(functions()), "http://next-{service}.invalid")[0]
    printed = capsys.readouterr().out
    assert "waiting: change_email cannot be reached" in printed
    assert "FAILED: " in printed
    assert "withdraw was not called" in printed


def test_an_image_tells_what_its_settings_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMAIL_API_KEY", "")
    inside.settings()
    assert json.loads(capsys.readouterr().out)["problems"] == ["EMAIL_API_KEY is not set (email needs it)"]


def test_without_prometheus_a_deployment_must_say_so() -> None:
    done = aegis("deploy", "v1", "--environment", "production", KUBECONFIG=str(kubeconfig()))
    assert (done.returncode, "pass --no-gate" in done.stderr) == (1, True)


def test_without_a_cluster_the_command_says_what_to_do() -> None:
    done = aegis("releases")
    assert done.returncode == 1
    assert "Set KUBECONFIG" in done.stderr
    done = aegis("releases", "--context", "elsewhere", KUBECONFIG=str(kubeconfig()))
    assert "There is no context elsewhere. Available: here" in done.stderr
    preparing = ["prepare", "--environment", "development"]
    for command in (
        ["releases"],
        preparing,
        ["backup", "--in-cluster"],
        ["restore", "latest", "--force", "--in-cluster"],
    ):
        done = aegis(*command, KUBECONFIG=str(kubeconfig()))
        assert (done.returncode, "cannot reach the API server" in done.stderr) == (1, True)


def test_a_restore_in_a_cluster_takes_no_url_whose_password_would_stand_in_the_job() -> None:
    done = aegis("restore", "latest", "--in-cluster", "--into", "postgresql://u:p@elsewhere/name")
    assert (done.returncode, "not allowed with" in done.stderr) == (2, True)


def kubeconfig() -> Path:
    """Of a cluster that is not there."""
    file = DATA / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    told = {
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "here",
        "users": [{"name": "u", "user": {}}],
    }
    file.write_text(json.dumps(told | {"apiVersion": "v1", "kind": "Config"}))
    return file


def test_a_table_is_aligned_and_shows_what_is_empty() -> None:
    rows = [{"function": "login", "ready": True, "traffic": {"login-r2": 10, "login-r1": 90}, "url": ""}]
    assert table(rows, ("function", "ready", "traffic", "url")).splitlines() == [
        "FUNCTION  READY  TRAFFIC                       URL",
        "login     yes    login-r2 10 %, login-r1 90 %  -",
    ]
