"""People come when a scenario says so, and do what the functions are there for."""

import re
from types import FunctionType

import pytest

from loadtests.people import Administrator, Commuter, Person, Somebody
from loadtests.scenarios import SCENARIOS, Shape
from shared.runtime.manifests import functions
from tests.conftest import ROOT

pytestmark = pytest.mark.no_service


def people_at(name: str, moment: float, monkeypatch: pytest.MonkeyPatch) -> tuple[int, float] | None:
    shape = Shape(SCENARIOS[name])
    monkeypatch.setattr(shape, "get_run_time", lambda: moment)
    return shape.tick()


def test_a_spike_is_ten_times_as_many_people_within_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    spike = SCENARIOS["spike"]
    before, within, after = (people_at("spike", spike.seconds * share, monkeypatch) for share in (0.2, 0.5, 0.9))
    assert before
    assert within
    assert after
    assert within[0] == 10 * before[0] == 10 * after[0]
    assert (within[0] - before[0]) / within[1] <= 5


def test_a_ramp_grows_all_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = SCENARIOS["ramp"].seconds
    counts = [people[0] for second in range(0, seconds, 10) if (people := people_at("ramp", second, monkeypatch))]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (10, SCENARIOS["ramp"].users)
    assert people_at("ramp", seconds, monkeypatch) is None


def test_who_waits_for_a_storm_has_joined_before_it_begins() -> None:
    storm = SCENARIOS["login-storm"]
    assert storm.people == (Commuter,)
    begins, last = storm.begins * storm.seconds, storm.stages[-2].until * storm.seconds
    assert last + storm.stages[-1].arrive_in < begins


@pytest.mark.parametrize("who", [Person, Commuter, Administrator])
def test_every_request_and_task_is_named_after_functions(who: type[Somebody]) -> None:
    tasks = [task.__name__ for task in who.tasks if isinstance(task, FunctionType)]
    assert {name.removesuffix("_elsewhere") for task in tasks for name in task.split("_and_")} <= set(functions())
    called = set(re.findall(r'self\.(?:send|insist)\(\s*"(\w+)"', (ROOT / "loadtests" / "people.py").read_text()))
    assert called <= set(functions())


def test_people_call_what_carries_the_load() -> None:
    called = set(
        re.findall(r'"(\w+)", "(?:GET|POST|PUT|PATCH|DELETE)"', (ROOT / "loadtests" / "people.py").read_text())
    )
    assert called >= {
        "register", "request_email_verification", "verify_email", "login", "get_profile", "update_profile",
        "refresh_token", "list_sessions", "revoke_session", "request_phone_code", "verify_phone", "export_data",
        "logout", "withdraw", "list_users", "get_user", "list_audit",
    }  # fmt: skip
