"""What `make check` finds in rendered manifests, and what the figures in them add up to."""

from typing import Any

import pytest

from knative import check
from shared import kafka
from shared.manifests import function_name, functions, schedules, triggers
from shared.registry import load_all, uses

DEVELOPMENT = check.OVERLAYS / "development"


@pytest.fixture
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of the development overlay, by kind and name."""
    return {(item["kind"], item["metadata"]["name"]): item for item in check.render(DEVELOPMENT)}


@pytest.fixture
def with_eventing() -> dict[tuple[str, str], dict[str, Any]]:
    """The same where Knative Eventing delivers the events."""
    return {(item["kind"], item["metadata"]["name"]): item for item in check.render(DEVELOPMENT, "eventing")}


def problems(objects: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    return list(check.problems_of(list(objects.values())))


def container(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = item["spec"]["template"]["spec"]["containers"][0]
    return found


def test_the_overlay_is_sound(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert problems(objects) == []


def test_the_overlay_is_sound_with_knative_eventing(with_eventing: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert problems(with_eventing) == []


def test_a_misspelt_field_is_found(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    objects["Deployment", "relay"]["spec"]["replica"] = 2
    assert any("replica" in problem for problem in problems(objects))


def test_a_pod_that_is_not_restricted_is_found(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    del container(objects["Service", "login"])["securityContext"]["readOnlyRootFilesystem"]
    container(objects["Deployment", "relay"])["securityContext"]["runAsNonRoot"] = False
    assert sorted(problems(objects)) == [
        "Deployment relay: container relay: runAsNonRoot is not true",
        "Service login: container function: readOnlyRootFilesystem is not true",
    ]


def test_two_routes_with_one_match_are_found(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    objects["HTTPRoute", "logout"]["spec"]["rules"] = objects["HTTPRoute", "login"]["spec"]["rules"]
    assert any("2 routes match" in problem for problem in problems(objects))


def test_a_route_without_a_timeout_is_found(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    del objects["HTTPRoute", "login"]["spec"]["rules"][0]["timeouts"]
    assert problems(objects) == ["HTTPRoute login states no timeout: the gateway's is 15 s"]


def test_knative_eventing_reads_the_topic_of_the_relay_by_the_same_triggers(
    with_eventing: dict[tuple[str, str], dict[str, Any]],
) -> None:
    names = {kind: {name for of, name in with_eventing if of == kind} for kind, _ in with_eventing}
    assert names["Trigger"] == {trigger.name for trigger in triggers()}
    assert names["PingSource"] == {schedule.name for schedule in schedules()}
    assert "dispatcher" not in names["Deployment"]
    assert "CronJob" not in names
    broker = with_eventing["Broker", "aegis-user"]
    assert broker["metadata"]["annotations"]["kafka.eventing.knative.dev/external.topic"] == kafka.EVENTS
    servers = with_eventing["ConfigMap", broker["spec"]["config"]["name"]]["data"]["bootstrap.servers"]
    assert servers == with_eventing["ConfigMap", "user-service-config"]["data"]["KAFKA_BOOTSTRAP_SERVERS"]
    assert servers.partition(":")[0].endswith(".svc.cluster.local")  # it is resolved in another namespace


def knative_services(objects: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in objects.values() if item["apiVersion"] == "serving.knative.dev/v1"]


def environment(item: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container(item)["env"]}


def test_every_function_is_in_the_environment(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert {function_name(service["metadata"]["name"]) for service in knative_services(objects)} == set(functions())


def test_the_route_of_a_function_leads_to_it(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    for service in knative_services(objects):
        name = service["metadata"]["name"]
        if ("HTTPRoute", name) in objects:
            (rule,) = objects["HTTPRoute", name]["spec"]["rules"]
            hostname = rule["filters"][0]["urlRewrite"]["hostname"]
            assert hostname == f"{name}.aegis-user-service.svc.cluster.local"


def test_the_connections_of_all_pods_at_full_scale_fit(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    clients = 0
    load_all()
    for service in knative_services(objects):
        if "database" not in uses(function_name(service["metadata"]["name"])):
            continue
        annotations = service["spec"]["template"]["metadata"]["annotations"]
        clients += int(annotations["autoscaling.knative.dev/max-scale"]) * int(environment(service)["THREADS"])
    pgbouncer = environment(objects["Deployment", "pgbouncer"])
    assert clients <= int(pgbouncer["MAX_CLIENT_CONN"])
    max_connections = int(container(objects["StatefulSet", "postgres"])["args"][-1].partition("=")[2])
    relay_and_migration = 4
    assert int(pgbouncer["DEFAULT_POOL_SIZE"]) + relay_and_migration < max_connections


def test_scaling_is_stated_for_every_function_and_within_reason(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for service in knative_services(objects):
        template = service["spec"]["template"]
        scaling = {
            name.removeprefix("autoscaling.knative.dev/"): value
            for name, value in template["metadata"]["annotations"].items()
            if name.startswith("autoscaling.")
        }
        assert scaling.keys() == {"target", "min-scale", "max-scale", "window", "scale-down-delay"}
        assert 0 <= int(scaling["min-scale"]) <= int(scaling["max-scale"])
        assert int(scaling["target"]) <= template["spec"]["containerConcurrency"]
