"""The daily round that has businesses checked again."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import yaml
from sqlalchemy import func, select

from functions import recheck_businesses
from shared.postgresql.tables import business
from shared.postgresql.transactions import transaction
from tests.conftest import ROOT, User, add_business, create_user, events_of, fire, wait_for


def store(address: str, status: str, checked: timedelta | None, submitted: timedelta = timedelta(days=9)) -> User:
    """A user with a business that was checked so long ago; the sandbox knows it as active."""
    user = create_user(address)
    times = {
        "submitted_at": func.now() - submitted,
        "checked_at": None if checked is None else func.now() - checked,
    }
    add_business(user, status=status, **times)
    return user


def checks_of(user: User) -> int:
    return events_of(user).count("business_check_due")


def checks_once(user: User) -> bool:
    """Whether one check is announced; a run of another test's may have the business in hand, and be about to."""
    return wait_for(lambda: checks_of(user)) == 1


def test_a_verified_business_is_checked_again_after_a_day(address: str) -> None:
    user = store(address, "verified", timedelta(hours=24))
    assert fire("recheck_businesses").status_code == 204
    assert checks_once(user)


def test_a_business_that_was_checked_today_is_left_alone(address: str) -> None:
    user = store(address, "verified", timedelta(hours=22))
    fire("recheck_businesses")
    assert checks_of(user) == 0


@pytest.mark.parametrize("status", ["rejected", "closed"])
def test_what_is_not_verified_is_not_checked_again(address: str, status: str) -> None:
    user = store(address, status, timedelta(days=2))
    fire("recheck_businesses")
    assert checks_of(user) == 0


def test_a_submission_that_never_got_an_answer_is_verified_after_all(address: str) -> None:
    user = store(address, "pending", None, submitted=timedelta(hours=24))
    fire("recheck_businesses")
    assert checks_once(user)
    wait_for(lambda: events_of(user)[-1] == "business_verified")


def test_a_submission_that_is_being_examined_is_left_alone(address: str) -> None:
    user = store(address, "pending", None, submitted=timedelta(minutes=1))
    fire("recheck_businesses")
    assert checks_of(user) == 0


def test_a_second_run_announces_nothing_again(address: str) -> None:
    user = store(address, "verified", timedelta(days=2))
    fire("recheck_businesses")
    assert checks_once(user)
    fire("recheck_businesses")
    assert checks_of(user) == 1


def test_many_are_announced_in_batches_and_each_once_by_runs_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recheck_businesses, "BATCH", 3)
    users = [store(f"{number}-{address}", "verified", timedelta(days=2)) for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        assert {response.status_code for response in pool.map(lambda _: fire("recheck_businesses"), range(4))} == {204}
    assert all(checks_once(user) for user in users)


def test_the_mark_is_the_time_of_the_run(address: str) -> None:
    user = store(address, "verified", timedelta(days=2))
    fire("recheck_businesses")
    assert checks_once(user)
    with transaction() as connection:
        is_new = select(business.c.check_announced_at > func.now() - timedelta(minutes=1))
        assert connection.scalar(is_new.where(business.c.account_id == user.id))


def test_it_is_scheduled_once_a_day() -> None:
    text = (ROOT / "knative" / "functions" / "recheck_businesses.yaml").read_text()
    (source,) = [item for item in yaml.safe_load_all(text) if item["kind"] == "PingSource"]
    assert source["apiVersion"] == "sources.knative.dev/v1"
    minute, hour, *rest = source["spec"]["schedule"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert rest == ["*", "*", "*"]
    assert source["spec"]["sink"]["ref"]["name"] == "recheck-businesses"
