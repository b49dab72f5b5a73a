"""The key with which the gateway vouches for X-Forwarded-For: who is given it, and in what order releases bring it."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knative.kubernetes import jobs
from knative.kubernetes.cluster import Cluster
from knative.kubernetes.overlays import Environment, environment
from knative.release import inside, rollout
from knative.release.checks import with_settings
from knative.release.deploy import deploy
from knative.release.rollback import rollback
from knative.terminal import Progress, Refused
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.http.clients import GATEWAY_KEY_HEADER
from tests.knative import kubernetes_api
from tests.knative.environments import ENVIRONMENTS, container, functions_of, objects_of
from tests.knative.kubernetes_api import API

pytestmark = pytest.mark.no_service

FILTER = {"group": "gateway.envoyproxy.io", "kind": "HTTPRouteFilter", "name": "gateway-key"}


def sends_key(route: dict[str, Any]) -> bool:
    return all(
        {"type": "ExtensionRef", "extensionRef": FILTER} in rule.get("filters", ()) for rule in route["spec"]["rules"]
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_gateway_sends_its_key_to_every_function_and_to_nothing_else(name: str) -> None:
    objects = objects_of(name)
    load_all()
    routes = {key[1] for key, one in objects.items() if key[0] == "HTTPRoute" and sends_key(one)}
    assert routes == {function.replace("_", "-") for function in HTTP_FUNCTIONS}
    injection = objects["HTTPRouteFilter", "gateway-key"]["spec"]["credentialInjection"]
    assert injection["header"] == GATEWAY_KEY_HEADER  # without one it would be Authorization
    assert injection["overwrite"] is True
    assert injection["credential"] == {"valueRef": {"name": "gateway-key"}}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_functions_that_clients_call_know_the_key_and_no_other_pod_does(name: str) -> None:
    objects = objects_of(name) | objects_of(name, "migration")
    load_all()
    knows = {key[1] for key, one in objects.items() if key[0] not in ("Secret", "ExternalSecret") and told(one)}
    assert knows == {function.replace("_", "-") for function in HTTP_FUNCTIONS}
    own = {one["metadata"]["name"] for one in functions_of(objects) if "'gateway-key'" in str(container(one))}
    assert own == set()


def told(one: dict[str, Any]) -> bool:
    return "'GATEWAY_KEY'" in str(one)


def test_the_store_of_production_gives_the_gateway_the_first_key_alone() -> None:
    spec = objects_of("production")["ExternalSecret", "gateway-key"]["spec"]
    (source,) = spec["data"]
    assert source["remoteRef"] == {"key": "aegis/user-service", "property": "GATEWAY_KEY"}
    assert spec["target"]["template"]["data"] == {"credential": '{{ splitList "," .GATEWAY_KEY | first | trim }}'}
    of_functions = objects_of("production")["ExternalSecret", "user-service-secrets"]["spec"]["data"]
    assert source in of_functions


def test_a_release_is_refused_whose_gateway_would_send_a_key_that_functions_do_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = next(
        one for one in container(with_settings(environment("production", "v1")))["env"] if "CREDENTIAL" in str(one)
    )
    assert sent["valueFrom"] == {"secretKeyRef": {"name": "gateway-key", "key": "credential"}}
    monkeypatch.setenv("GATEWAY_KEY", f"{'n' * 32},{'o' * 32}")
    for key, is_taken in (("n" * 32, True), ("o" * 32, True), ("x" * 32, False), ("", False)):
        monkeypatch.setenv(sent["name"], key)
        found = inside.problems(os.environ)
        assert found == ([] if is_taken else [inside.UNKNOWN_CREDENTIAL])


def without_key(new: Environment) -> Environment:
    """As the release before the key."""
    old = copy.deepcopy(new)
    for function in old.functions:
        own = container(function)
        own["env"] = [one for one in own["env"] if one["name"] != "GATEWAY_KEY"]
    for one in old.rest:
        for rule in one["spec"].get("rules", ()) if one["kind"] == "HTTPRoute" else ():
            rule["filters"] = [each for each in rule.get("filters", ()) if each.get("extensionRef") != FILTER]
    old.rest[:] = [
        one for one in old.rest if (one["kind"], one["metadata"]["name"]) != ("HTTPRouteFilter", "gateway-key")
    ]
    return old


def few(whole: Environment) -> Environment:
    names = {"login", "get-profile", "send-email"}
    return Environment(
        name=whole.name,
        prepared=[],
        foundation=[one for one in whole.foundation if one["kind"] == "ConfigMap"],
        migration=whole.migration,
        functions=[one for one in whole.functions if one["metadata"]["name"] in names],
        rest=[
            one
            for one in whole.rest
            if one["kind"] in ("HTTPRouteFilter", "Gateway")
            or (one["kind"] == "HTTPRoute" and one["metadata"]["name"] in names)
        ],
        image=whole.image,
    )


def served_without_key(api: API) -> set[str]:
    """The functions with traffic at a revision that asks for the key, to which the gateway sends none."""
    filters = api.of_kind("HTTPRouteFilter")
    routes = {name: sends_key(one) and "gateway-key" in filters for name, one in api.of_kind("HTTPRoute").items()}
    revisions = api.of_kind("Revision")
    return {
        name
        for name, one in api.of_kind("Knative").items()
        for target in one["status"]["traffic"]
        if target.get("percent") and told(revisions[target["revisionName"]]) and not routes.get(name, True)
    }


@pytest.fixture
def faults() -> list[set[str]]:
    """What was wrong at any moment."""
    return []


@pytest.fixture
def api(faults: list[set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[API]:
    objects = environment("development", "v1")
    monkeypatch.setattr(rollout, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)
    with kubernetes_api.serving(
        [*objects.objects, *objects.foundation], lambda api: faults.append(served_without_key(api))
    ) as api:
        file = kubernetes_api.kubeconfig(api, tmp_path)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        monkeypatch.setenv("GATEWAY_URL", f"http://127.0.0.1:{api.server_address[1]}")
        api.objects["Deployment", "controller"] = {"metadata": {"name": "controller", "labels": {}}}
        yield api


def test_no_function_that_asks_for_the_key_has_traffic_before_the_gateway_sends_it(
    api: API, faults: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a release before the key to one with it, back, and to it again."""
    new = few(environment("development", "v2"))
    old = without_key(new)

    def release(what: Environment, tag: str) -> None:
        deploy(Cluster(None), what, tag, gate=None, hold=0, progress=Progress())

    release(old, "v1")
    assert not any(map(sends_key, api.of_kind("HTTPRoute").values()))
    release(new, "v2")
    assert all(map(sends_key, api.of_kind("HTTPRoute").values()))
    rollback(Cluster(None), "v1", Progress())
    assert not any(map(sends_key, api.of_kind("HTTPRoute").values()))
    assert "gateway-key" not in api.of_kind("HTTPRouteFilter")
    rollback(Cluster(None), "v2", Progress())
    assert all(map(sends_key, api.of_kind("HTTPRoute").values()))
    assert [one for one in faults if one] == []


def test_a_gateway_that_does_not_take_the_key_keeps_its_routes_and_the_release_is_refused(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = few(environment("development", "v2"))
    deploy(Cluster(None), without_key(new), "v1", gate=None, hold=0, progress=Progress())
    before = copy.deepcopy({name: one["spec"] for name, one in api.of_kind("HTTPRoute").items()})
    refused: list[str] = []

    def refuse(route: dict[str, Any]) -> str:
        if sends_key(route):
            refused.append(route["metadata"]["name"])
        return "no such Secret" if sends_key(route) else ""

    api.refuses = refuse
    with pytest.raises(Refused, match="no such Secret") as told_:
        deploy(Cluster(None), new, "v2", gate=None, hold=0, progress=Progress())
    assert "The traffic is back on release 1" in str(told_.value)
    assert {name: one["spec"] for name, one in api.of_kind("HTTPRoute").items()} == before
    assert len(set(refused)) == 1  # one route alone met it
    traffic = {
        target["revisionName"]
        for one in api.of_kind("Knative").values()
        for target in one["status"]["traffic"]
        if target["percent"]
    }
    assert traffic == {"login-r1", "get-profile-r1", "send-email-r1"}
