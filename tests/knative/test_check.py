"""What `make check` finds in rendered manifests."""

import copy

import pytest

from knative import check
from shared.events import kafka
from shared.runtime.manifests import schedules, triggers
from tests.knative.environments import Objects, container, functions_of, objects_of

pytestmark = pytest.mark.no_service


@pytest.fixture
def objects() -> Objects:
    """The objects of the development overlay, for the test to change."""
    return copy.deepcopy(objects_of("development"))


@pytest.fixture
def with_eventing() -> Objects:
    """The same where Knative Eventing delivers the events."""
    return objects_of("development", delivery="eventing")


def problems(objects: Objects) -> list[str]:
    return list(check.problems_of(list(objects.values())))


def test_the_overlay_is_sound_with_knative_eventing(with_eventing: Objects) -> None:
    assert problems(with_eventing) == []


def test_a_misspelt_field_is_found(objects: Objects) -> None:
    objects["Deployment", "relay"]["spec"]["replica"] = 2
    assert any("replica" in problem for problem in problems(objects))


def test_a_pod_that_is_not_restricted_is_found(objects: Objects) -> None:
    del container(objects["Service", "login"])["securityContext"]["readOnlyRootFilesystem"]
    container(objects["Deployment", "relay"])["securityContext"]["runAsNonRoot"] = False
    assert sorted(problems(objects)) == [
        "Deployment relay: container relay: runAsNonRoot is not true",
        "Service login: container function: readOnlyRootFilesystem is not true",
    ]


def test_two_routes_with_one_match_are_found(objects: Objects) -> None:
    objects["HTTPRoute", "logout"]["spec"]["rules"] = objects["HTTPRoute", "login"]["spec"]["rules"]
    assert any("2 routes match" in problem for problem in problems(objects))


def test_a_redirect_of_one_listener_is_no_second_match_of_a_route_at_another(
    objects: Objects,
) -> None:
    redirect = copy.deepcopy(objects["HTTPRoute", "login"])
    redirect["spec"]["parentRefs"][0]["sectionName"] = "http"
    objects["HTTPRoute", "login"]["spec"]["parentRefs"][0]["sectionName"] = "https"
    objects["HTTPRoute", "redirect"] = redirect
    assert problems(objects) == []


def test_a_route_without_a_timeout_is_found(objects: Objects) -> None:
    del objects["HTTPRoute", "login"]["spec"]["rules"][0]["timeouts"]
    assert problems(objects) == ["HTTPRoute login states no timeout: the gateway's default is 15 s"]


def test_knative_eventing_reads_the_topic_of_the_relay_by_the_same_triggers(
    with_eventing: Objects,
) -> None:
    names = {kind: {name for of, name in with_eventing if of == kind} for kind, _ in with_eventing}
    assert names["Trigger"] == {trigger.name for trigger in triggers()}
    assert names["PingSource"] == {schedule.name for schedule in schedules()}
    assert "dispatcher" not in names["Deployment"]
    assert names["CronJob"] == {"backup"}
    broker = with_eventing["Broker", "aegis-user"]
    assert broker["metadata"]["annotations"]["kafka.eventing.knative.dev/external.topic"] == kafka.EVENTS
    servers = with_eventing["ConfigMap", broker["spec"]["config"]["name"]]["data"]["bootstrap.servers"]
    (settings,) = [item for (_, name), item in with_eventing.items() if name.startswith("user-service-config")]
    assert servers == settings["data"]["KAFKA_BOOTSTRAP_SERVERS"]
    assert servers.partition(":")[0].endswith(".svc.cluster.local")  # it is resolved in another namespace


def test_the_route_of_a_function_leads_to_it(objects: Objects) -> None:
    for service in functions_of(objects):
        name = service["metadata"]["name"]
        if ("HTTPRoute", name) in objects:
            (rule,) = objects["HTTPRoute", name]["spec"]["rules"]
            hostname = rule["filters"][0]["urlRewrite"]["hostname"]
            assert hostname == f"{name}.aegis-user-service.svc.cluster.local"
