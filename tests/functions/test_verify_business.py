"""Checking a business with the registry, and a registry that misbehaves."""

import fcntl
import json
import os
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, update

from functions import verify_business
from shared.framework.event_function import CLAIM_LIFETIME
from shared.postgresql.tables import business, processed_event
from shared.postgresql.transactions import transaction
from tests.conftest import (
    DATA,
    PASSWORD,
    User,
    add_business,
    call,
    create_user,
    envelope,
    events_of,
    log_in,
    post,
    row_of,
    wait_for,
)
from tests.providers import Answer, Asked, Provider, serving

SUBMITTED = "com.aegis.user.business_submitted.v1"
DUE = "com.aegis.user.business_check_due.v1"
NUMBER = "1010100014"
STATUS, VALIDATE = "/api/nts-businessman/v1/status", "/api/nts-businessman/v1/validate"


def found(**item: Any) -> Answer:
    return Answer(200, {"request_cnt": 1, "status_code": "OK", "data": [{"b_no": NUMBER, **item}]})


def state(code: str) -> dict[str, str]:
    return {"b_no": NUMBER, "b_stt": "", "b_stt_cd": code, "tax_type": ""}


ACTIVE = found(valid="01", status=state("01"))


@pytest.fixture(autouse=True)
def number_is_free() -> Iterator[None]:
    """No other account has the numbers that are fixed here, nor does a test in another process."""
    with (DATA / "business.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with transaction() as connection:
            connection.execute(delete(business).where(business.c.number.startswith("10101000")))
        yield


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with serving("BUSINESS_REGISTRY_API_URL", lambda _: ACTIVE, monkeypatch) as server:
        yield server


def add_here(user: User, **changes: Any) -> None:
    """A business of the number that the registry of these tests answers on."""
    add_business(user, number=NUMBER, **changes)


def outcome(user: User) -> tuple[str, str | None]:
    row = row_of(user, business)
    return row.status, row.reason


def deliver(user: User, type_: str = SUBMITTED, headers: dict[str, str] | None = None) -> Any:
    return post("verify_business", "/", {"user_id": str(user.id)}, **(headers or envelope(type_)))


def test_the_registry_is_asked_as_it_wants_to_be(active_user: User, registry: Provider) -> None:
    add_here(active_user)
    assert deliver(active_user).status_code == 204
    (asked,) = registry.asked
    assert asked.path == VALIDATE
    assert asked.headers["authorization"] == f"Infuser {os.environ['BUSINESS_REGISTRY_API_KEY']}"
    assert json.loads(asked.body) == {"businesses": [{"b_no": NUMBER, "start_dt": "20190304", "p_nm": "김민준"}]}


def test_a_name_that_was_stored_decomposed_is_sent_composed(active_user: User, registry: Provider) -> None:
    add_here(active_user, representative=unicodedata.normalize("NFD", " 김민준 "))
    assert deliver(active_user).status_code == 204
    (asked,) = registry.asked
    assert json.loads(asked.body)["businesses"][0]["p_nm"] == "김민준"


def test_a_business_that_is_active_as_stated_is_verified(active_user: User, registry: Provider) -> None:
    tokens = log_in(active_user)
    add_here(active_user)
    assert call("get_profile", tokens).json["business"]["status"] == "pending"
    deliver(active_user)
    assert outcome(active_user) == ("verified", None)
    assert row_of(active_user, business).checked_at is not None
    assert call("get_profile", tokens).json["business"] == {"number": NUMBER, "status": "verified", "reason": None}
    assert events_of(active_user)[-1] == "business_verified"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([found(valid="01", status=state("02"))], "suspended"),
        ([found(valid="01", status=state("03"))], "closed"),
        ([found(valid="01", status=state(""))], "unregistered"),
        ([found(valid="01"), found(**state("03"))], "closed"),
        ([found(valid="02", valid_msg="확인할 수 없습니다."), found(**state("01"))], "not_registered_as_stated"),
        ([found(valid="02", valid_msg="확인할 수 없습니다."), found(**state("03"))], "not_registered_as_stated"),
        ([found(valid="02", valid_msg="확인할 수 없습니다."), found(**state(""))], "unregistered"),
    ],
    ids=str,
)
def test_any_other_is_rejected_with_the_reason(
    active_user: User, registry: Provider, answers: list[Answer], reason: str
) -> None:
    tokens = log_in(active_user)
    add_here(active_user)
    registry.answers = list(answers)
    assert deliver(active_user).status_code == 204
    assert outcome(active_user) == ("rejected", reason)
    assert call("get_profile", tokens).json["business"]["reason"] == reason
    assert events_of(active_user)[-1] == "business_rejected"
    assert [asked.path for asked in registry.asked] == [VALIDATE, STATUS][: len(answers)]


def test_the_state_is_asked_where_the_answer_leaves_it_out(active_user: User, registry: Provider) -> None:
    add_here(active_user)
    registry.answers = [found(valid="01"), found(**state("01"))]
    deliver(active_user)
    assert outcome(active_user) == ("verified", None)
    assert json.loads(registry.asked[1].body) == {"b_no": [NUMBER]}


UNCLEAR = [
    Answer(429, {"code": -21, "msg": "too many"}),
    Answer(401, {"code": -401, "msg": "no key"}),
    Answer(400, {"code": -4, "msg": "unknown key"}),
    Answer(200, {"code": -4, "msg": "unknown key"}),
    Answer(500, {"status_code": "INTERNAL_ERROR"}),
    Answer(503, {"status_code": "OK", "data": [{"b_no": NUMBER, "valid": "01", "status": state("01")}]}),
    Answer(200, b"<html>maintenance</html>"),
    Answer(200, b"\xff"),
    Answer(200, []),
    Answer(200, {"status_code": "OK", "data": []}),
    Answer(200, {"status_code": "OK", "data": [1]}),
    Answer(200, {"status_code": "OK", "data": [{"b_no": "9999999999", "valid": "01", "status": state("01")}]}),
    Answer(200, {"status_code": "HTTP_ERROR"}),
    Answer(302, {}),
    Answer(drops=True),
]


@pytest.mark.parametrize(
    "answer",
    [
        *UNCLEAR,
        found(valid="03", status=state("01")),
        found(status=state("01")),
        found(valid="01", status=state("04")),
        found(valid="01", status="active"),
        found(valid="01", status={"b_stt_cd": None}),
        found(valid=["01"], status=state("01")),
    ],
    ids=str,
)
def test_a_registry_that_is_away_or_unclear_changes_nothing_and_is_asked_again(
    active_user: User, registry: Provider, answer: Answer
) -> None:
    add_here(active_user)
    headers = envelope(SUBMITTED)
    registry.answers = [answer]
    failed = deliver(active_user, headers=headers)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "5")
    assert outcome(active_user) == ("pending", None)
    assert deliver(active_user, headers=headers).status_code == 204
    assert outcome(active_user) == ("verified", None)


def test_a_registry_that_says_when_to_come_again_is_heard(active_user: User, registry: Provider) -> None:
    add_here(active_user)
    registry.answers = [Answer(429, {"code": -21}, headers={"Retry-After": "17"})]
    failed = deliver(active_user)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "17")
    assert failed.json["detail"] == "The business registry answered 429."


@pytest.mark.parametrize(
    "answer", [Answer(after=threading.Event()), Answer(200, trickles="body")], ids=["hangs", "trickles"]
)
def test_a_registry_that_hangs_or_trickles_is_given_up_and_asked_again(
    active_user: User, registry: Provider, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_here(active_user)
    headers = envelope(SUBMITTED)
    registry.answers = [found(valid="01"), answer]
    with monkeypatch.context() as patched:
        patched.setattr(verify_business, "ANSWER_SECONDS", 0.3)
        failed = deliver(active_user, headers=headers)
    assert (failed.status_code, failed.json["detail"]) == (503, "The business registry does not answer in time.")
    assert deliver(active_user, headers=headers).status_code == 204
    assert outcome(active_user) == ("verified", None)


def test_what_is_written_of_an_answer_and_the_mark_are_one_transaction(
    active_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery that took so long that another one took over writes nothing, and announces nothing."""
    headers = envelope(SUBMITTED)
    answers: list[Any] = []

    def answer(_: Asked) -> Answer:
        if not answers:
            answers.append(None)
            with transaction() as connection:
                connection.execute(
                    update(processed_event)
                    .where(processed_event.c.event_id == f"{headers['ce-source']} {headers['ce-id']}")
                    .values(claimed_at=processed_event.c.claimed_at - CLAIM_LIFETIME, done_at=None)
                )
        return ACTIVE

    add_here(active_user)
    with serving("BUSINESS_REGISTRY_API_URL", answer, monkeypatch):
        assert deliver(active_user, headers=headers).status_code == 503
        assert outcome(active_user) == ("pending", None)
        assert "business_verified" not in events_of(active_user)
        assert deliver(active_user, headers=headers).status_code == 204
    assert events_of(active_user).count("business_verified") == 1


@pytest.mark.parametrize(
    ("status", "code"), [(400, "BAD_JSON_REQUEST"), (411, "REQUEST_DATA_MALFORMED"), (413, "TOO_LARGE_REQUEST")]
)
def test_a_question_that_the_registry_refuses_is_not_asked_again(
    active_user: User, registry: Provider, status: int, code: str
) -> None:
    add_here(active_user)
    registry.answers = [Answer(status, {"status_code": code})]
    refused = deliver(active_user)
    assert (refused.status_code, refused.json["detail"]) == (422, f"The business registry answered {code}.")
    assert outcome(active_user) == ("pending", None)


def test_an_answer_on_a_submission_that_was_replaced_meanwhile_is_dropped(
    active_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, replaced = threading.Event(), threading.Event()

    def answer_late(_: Asked) -> Answer:
        asked.set()
        replaced.wait(3)
        return ACTIVE

    add_here(active_user)
    with serving("BUSINESS_REGISTRY_API_URL", answer_late, monkeypatch):
        delivery = threading.Thread(target=deliver, args=(active_user,))
        delivery.start()
        assert asked.wait(10)
        with transaction() as connection:
            connection.execute(
                update(business)
                .where(business.c.account_id == active_user.id)
                .values(representative="이서연", submitted_at=func.now())
            )
        replaced.set()
        delivery.join()
    assert outcome(active_user) == ("pending", None)
    assert "business_verified" not in events_of(active_user)


def test_no_transaction_is_open_while_the_registry_is_asked(active_user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.postgresql.pool import engine

    checked_out: list[int] = []

    def look(_: Asked) -> Answer:
        checked_out.append(engine().pool.checkedout())  # type: ignore[attr-defined]
        return ACTIVE

    add_here(active_user)
    with serving("BUSINESS_REGISTRY_API_URL", look, monkeypatch):
        deliver(active_user)
    assert checked_out == [0]


@pytest.mark.parametrize("status", ["verified", "rejected", "closed"])
def test_a_submission_is_examined_once(active_user: User, registry: Provider, status: str) -> None:
    add_here(active_user, status=status)
    assert deliver(active_user).status_code == 204
    assert registry.asked == []


def test_without_a_business_nothing_happens(active_user: User, registry: Provider) -> None:
    assert deliver(active_user).status_code == 204
    assert registry.asked == []


def test_a_verified_business_that_is_still_active_stays_so(active_user: User, registry: Provider) -> None:
    add_here(active_user, status="verified", checked_at=func.now() - timedelta(days=1))
    registry.answers = [found(**state("01"))]
    before = events_of(active_user)
    assert deliver(active_user, DUE).status_code == 204
    (asked,) = registry.asked
    assert (asked.path, json.loads(asked.body)) == (STATUS, {"b_no": [NUMBER]})
    assert outcome(active_user) == ("verified", None)
    assert events_of(active_user) == before


@pytest.mark.parametrize(("code", "reason"), [("02", "suspended"), ("03", "closed"), ("", "unregistered")])
def test_a_verified_business_that_is_active_no_more_is_closed(
    active_user: User, registry: Provider, code: str, reason: str
) -> None:
    tokens = log_in(active_user)
    add_here(active_user, status="verified")
    assert call("get_profile", tokens).json["business"]["status"] == "verified"
    registry.answers = [found(**state(code))]
    deliver(active_user, DUE)
    assert call("get_profile", tokens).json["business"] == {"number": NUMBER, "status": "closed", "reason": reason}
    assert events_of(active_user)[-1] == "business_closed"


@pytest.mark.parametrize("answer", [*UNCLEAR, found(**state("04")), found(valid="01")], ids=str)
def test_no_unclear_answer_closes_a_business(active_user: User, registry: Provider, answer: Answer) -> None:
    add_here(active_user, status="verified")
    registry.answers = [answer]
    assert deliver(active_user, DUE).status_code == 503
    assert outcome(active_user) == ("verified", None)


def test_a_submission_that_never_got_an_answer_is_examined_when_its_check_is_due(
    active_user: User, registry: Provider
) -> None:
    add_here(active_user)
    deliver(active_user, DUE)
    assert outcome(active_user) == ("verified", None)
    assert registry.asked[0].path == VALIDATE


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("1010100014", ("verified", None)),
        ("1010100066", ("rejected", "not_registered_as_stated")),
        ("1010100047", ("rejected", "suspended")),
        ("1010100028", ("rejected", "closed")),
        ("1010100159", ("rejected", "unregistered")),
    ],
)
def test_the_sandbox_decides_by_the_number(active_user: User, number: str, expected: tuple[str, str | None]) -> None:
    add_business(active_user, number=number)
    assert deliver(active_user).status_code == 204
    assert outcome(active_user) == expected


def test_in_the_sandbox_some_close_after_they_were_verified(active_user: User) -> None:
    add_business(active_user, number="1010100085")
    deliver(active_user)
    assert outcome(active_user) == ("verified", None)
    deliver(active_user, DUE)
    assert outcome(active_user) == ("closed", "closed")


@pytest.fixture
def other_user(address: str) -> User:
    return create_user(f"other-{address}")


@pytest.mark.parametrize("holds", [True, False], ids=["since numbers are held", "from before"])
def test_a_number_that_is_verified_on_one_account_is_rejected_on_another(
    active_user: User, other_user: User, registry: Provider, holds: bool
) -> None:
    tokens = log_in(other_user)
    add_here(active_user, status="verified", holds_number=holds)
    add_here(other_user)
    assert deliver(other_user).status_code == 204
    shown = call("get_profile", tokens).json["business"]
    assert shown == {"number": NUMBER, "status": "rejected", "reason": "verified_elsewhere"}
    assert events_of(other_user)[-1] == "business_rejected"
    assert outcome(active_user) == ("verified", None)


def test_who_states_what_the_registry_does_not_know_learns_nothing_of_another_account(
    active_user: User, other_user: User, registry: Provider
) -> None:
    add_here(active_user, status="verified", holds_number=True)
    add_here(other_user)
    registry.answers = [found(valid="02", valid_msg="확인할 수 없습니다."), found(**state("01"))]
    deliver(other_user)
    assert outcome(other_user) == ("rejected", "not_registered_as_stated")


def test_of_two_accounts_that_are_checked_at_once_one_gets_the_number(address: str, registry: Provider) -> None:
    users = [create_user(f"{number}-{address}") for number in range(4)]
    for user in users:
        add_here(user)
    with ThreadPoolExecutor(4) as pool:
        assert {answer.status_code for answer in pool.map(deliver, users)} == {204}
    rejected = ("rejected", "verified_elsewhere")
    assert sorted(map(outcome, users)) == [rejected] * 3 + [("verified", None)]


def test_who_withdraws_gives_the_number_back_and_gets_it_again_only_where_it_is_free(
    active_user: User, other_user: User, registry: Provider
) -> None:
    add_here(active_user)
    deliver(active_user)
    assert call("withdraw", log_in(active_user), {"password": PASSWORD}).status_code == 204
    deliver(active_user, DUE)
    assert outcome(active_user) == ("pending", None)
    add_here(other_user)
    deliver(other_user)
    assert outcome(other_user) == ("verified", None)
    log_in(active_user)
    wait_for(lambda: outcome(active_user)[0] != "pending")
    assert outcome(active_user) == ("rejected", "verified_elsewhere")


def test_who_comes_back_is_verified_again(active_user: User) -> None:
    add_business(active_user)
    deliver(active_user)
    assert call("withdraw", log_in(active_user), {"password": PASSWORD}).status_code == 204
    log_in(active_user)
    wait_for(lambda: outcome(active_user) == ("verified", None))


def test_a_check_leaves_accounts_as_they_are_that_shared_a_number_before(
    active_user: User, other_user: User, registry: Provider
) -> None:
    add_here(active_user, status="verified", holds_number=True)
    add_here(other_user, status="verified")
    for user in (active_user, other_user):
        deliver(user, DUE)
    assert [row_of(user, business).holds_number for user in (active_user, other_user)] == [True, False]
    assert outcome(active_user) == outcome(other_user) == ("verified", None)
