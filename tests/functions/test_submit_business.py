"""Submitting a business registration."""

import unicodedata
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from functions.submit_business import KOREA
from shared.postgresql.tables import business
from shared.postgresql.transactions import transaction
from tests.businesses import new_business_number
from tests.conftest import User, call, events_of, log_in, row_of, wait_for

REGISTRATION = {"opened_on": "2019-03-04", "representative": "김민준"}


def submit(tokens: dict[str, Any] | None, **changes: Any) -> Any:
    """Submits a business, which the sandbox knows as active where no number says otherwise."""
    return call("submit_business", tokens, {"number": new_business_number(), **REGISTRATION, **changes})


def test_a_submission_is_pending_in_the_answer_and_soon_verified_in_the_profile(active_user: User) -> None:
    tokens = log_in(active_user)
    assert call("get_profile", tokens).json["business"] is None
    number = new_business_number()
    response = submit(tokens, number=number)
    assert response.status_code == 202
    assert response.json == {"number": number, "status": "pending", "reason": None, "warnings": []}
    assert "business_submitted" in events_of(active_user)
    verified = {"number": number, "status": "verified", "reason": None}
    wait_for(lambda: call("get_profile", tokens).json["business"] == verified)
    assert events_of(active_user)[-2:] == ["business_submitted", "business_verified"]


def test_the_profile_shows_it_at_once(active_user: User) -> None:
    tokens = log_in(active_user)
    call("get_profile", tokens)
    number = new_business_number()
    submit(tokens, number=number)
    assert call("get_profile", tokens).json["business"]["number"] == number


def test_it_is_stored_in_one_form(active_user: User) -> None:
    decomposed = unicodedata.normalize("NFD", "김민준")
    number = new_business_number()
    submit(log_in(active_user), number=f" {number} ", representative=f" {decomposed} ")
    row = row_of(active_user, business)
    assert (row.number, row.opened_on, row.representative) == (number, date(2019, 3, 4), "김민준")


def test_a_check_digit_that_does_not_fit_is_a_warning(active_user: User) -> None:
    response = submit(log_in(active_user), number="101-01-00015")
    assert response.status_code == 202
    (warning,) = response.json["warnings"]
    assert warning["pointer"] == "/number"
    assert row_of(active_user, business).number == "1010100015"


def test_submitting_again_replaces_and_starts_over(active_user: User) -> None:
    tokens = log_in(active_user)
    submit(tokens, number="101-01-00028")
    wait_for(lambda: row_of(active_user, business).status == "rejected")
    first = row_of(active_user, business)
    number = new_business_number()
    assert submit(tokens, number=number).json["status"] == "pending"
    wait_for(lambda: row_of(active_user, business).status == "verified")
    row = row_of(active_user, business)
    assert (row.number, row.reason) == (number, None)
    assert row.submitted_at > first.submitted_at
    assert events_of(active_user)[-4:] == [
        "business_submitted",
        "business_rejected",
        "business_submitted",
        "business_verified",
    ]


def test_a_verified_business_that_is_submitted_again_is_pending_until_it_is_checked(active_user: User) -> None:
    tokens = log_in(active_user)
    submit(tokens)
    wait_for(lambda: row_of(active_user, business).status == "verified")
    with transaction() as connection:
        connection.execute(
            update(business).where(business.c.account_id == active_user.id).values(reason="of another time")
        )
    response = submit(tokens)
    assert (response.json["status"], response.json["reason"]) == ("pending", None)
    assert row_of(active_user, business).reason is None


def test_a_business_may_open_today_by_koreas_calendar(active_user: User) -> None:
    today = datetime.now(KOREA).date()
    assert submit(log_in(active_user), opened_on=str(today)).status_code == 202


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", "0000000000"),
        ("number", "123"),
        ("number", 1010100014),
        ("number", None),
        ("opened_on", str((datetime.now(UTC) + timedelta(days=2)).date())),
        ("opened_on", "1899-12-31"),
        ("opened_on", "2019-02-29"),
        ("opened_on", "20190304"),
        ("opened_on", "0"),
        ("opened_on", "1551657600"),
        ("opened_on", " 2019-03-04"),
        ("opened_on", "2019-3-4"),
        ("opened_on", "２０１９-03-04"),
        ("opened_on", 20190304),
        ("opened_on", "2019-03-04T00:00:00"),
        ("representative", ""),
        ("representative", " "),
        ("representative", "김\u0000"),
        ("representative", "김" * 101),
        ("name", "surplus"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_stored(active_user: User, field: str, value: Any) -> None:
    response = submit(log_in(active_user), **{field: value})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [f"/{field}"]
    assert row_of(active_user, business) is None


def test_an_account_submits_ten_times_an_hour(active_user: User) -> None:
    tokens = log_in(active_user)
    assert [submit(tokens).status_code for _ in range(11)] == [202] * 10 + [429]
