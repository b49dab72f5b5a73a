"""Functions, manifests and tests against each other: none can be forgotten, and all say the same."""

import pytest

from knative import ping
from knative.local.up import containers
from shared.events.schedules import ScheduleFired
from shared.framework.http_function import path_pattern
from shared.framework.registry import EVENT_FUNCTIONS, HTTP_FUNCTIONS, load_all
from shared.runtime.manifests import functions, manifests, routes, schedules, triggers
from shared.runtime.resource_names import function_name
from tests.conftest import ROOT
from tests.knative.environments import objects_of

pytestmark = pytest.mark.no_service


@pytest.fixture(autouse=True)
def all_functions() -> None:
    load_all()


def test_the_same_names_are_in_functions_manifests_and_tests() -> None:
    names = load_all()
    assert names == HTTP_FUNCTIONS.keys() | EVENT_FUNCTIONS.keys()
    assert names == {path.stem for path in (ROOT / "knative" / "functions").glob("*.yaml")} - {"kustomization"}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "functions").glob("test_*.py")}
    assert names == tested - {"every_function"}
    assert names == set(functions()) == containers().keys()


def test_routes_and_decorators_say_the_same() -> None:
    stated = {
        (function.name, function.method, path_pattern(function.path) if "{" in function.path else function.path)
        for function in HTTP_FUNCTIONS.values()
    }
    routed = {
        (route.function, route.method or "*", route.path + "*" if route.kind == "PathPrefix" else route.path)
        for route in routes()
        if route.method != "HEAD"
    }
    assert routed == stated


def test_a_route_for_get_takes_head_too() -> None:
    matches = {(route.path, route.method) for route in routes()}
    assert all((path, "HEAD") in matches for path, method in matches if method == "GET")


def test_no_two_routes_have_one_match() -> None:
    matches = [(route.path, route.kind, route.method) for route in routes()]
    assert len(matches) == len(set(matches))


def test_triggers_and_decorators_say_the_same() -> None:
    types = {type_ for function in EVENT_FUNCTIONS.values() for type_ in function.handles}
    for trigger in triggers():
        taken = {type_ for type_ in types if trigger.matches({"type": type_})}
        handled = EVENT_FUNCTIONS[function_name(trigger.service)].handles.keys()
        assert taken == handled - {ScheduleFired.type}


def test_schedules_and_decorators_say_the_same() -> None:
    scheduled = {name for name, function in EVENT_FUNCTIONS.items() if ScheduleFired.type in function.handles}
    assert {function_name(schedule.service) for schedule in schedules()} == scheduled
    assert ScheduleFired.type == ping.TYPE


def test_every_event_function_has_a_trigger_or_a_schedule_or_is_a_dead_letter_sink() -> None:
    services = {trigger.service for trigger in triggers()} | {schedule.service for schedule in schedules()}
    services |= {trigger.dead_letter_service for trigger in triggers()}
    assert {function_name(service) for service in services} == EVENT_FUNCTIONS.keys()


def test_where_eventing_is_absent_cron_jobs_fire_at_the_same_times() -> None:
    rendered = objects_of("development").values()
    assert not [item for item in rendered if item["kind"] in ("PingSource", "Trigger")]
    fired = {
        (pod["containers"][0]["args"][0], item["spec"]["schedule"], item["spec"]["timeZone"])
        for item in rendered
        if item["kind"] == "CronJob"
        for pod in [item["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
        if pod["containers"][0]["command"][-1] == "knative.ping"
    }
    assert fired == {(schedule.service, schedule.schedule, schedule.timezone) for schedule in schedules()}


def test_a_trigger_states_all_of_its_delivery() -> None:
    for manifest in manifests():
        if manifest["kind"] == "Trigger":
            stated = manifest["spec"]["delivery"].keys()
            assert stated == {"retry", "backoffPolicy", "backoffDelay", "timeout", "deadLetterSink"}


def test_a_trigger_delivers_in_order() -> None:
    for manifest in manifests():
        if manifest["kind"] == "Trigger":
            assert manifest["metadata"]["annotations"]["kafka.eventing.knative.dev/delivery.order"] == "ordered"
