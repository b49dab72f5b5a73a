"""Nobody learns from an answer, nor from the time that it takes, whether an address has an account."""

import time
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import insert
from uuid_utils.compat import uuid7

from shared.postgresql.tables import account, credential
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD, User, call, password_hash, session_of

PAIRS = 200
LEAST, MOST = 0.4, 0.6
"""Of the chance that a request with a known address takes longer than one with an unknown: 0.5 tells nothing."""

Ask = Callable[[str], Any]
"""Sends a request about an e-mail address."""


def create_users(count: int) -> list[User]:
    """Accounts like those of `create_user`, in one statement."""
    users = [User(uuid7(), f"{uuid.uuid4().hex[:12]}@example.com") for _ in range(count)]
    with transaction() as connection:
        connection.execute(
            insert(account),
            [
                {"id": user.id, "email": user.email, "canonical_email": user.email, "locale": "ko", "status": "active"}
                for user in users
            ],
        )
        connection.execute(
            insert(credential), [{"account_id": user.id, "password_hash": password_hash()} for user in users]
        )
    return users


def register(_requests: int) -> Ask:
    return lambda email: call("register", body={"email": email, "password": PASSWORD})


def login(_requests: int) -> Ask:
    return lambda email: call("login", body={"email": email, "password": "wrong horse battery staple"})


def request_email_verification(_requests: int) -> Ask:
    return lambda email: call("request_email_verification", body={"email": email})


def request_password_reset(_requests: int) -> Ask:
    return lambda email: call("request_password_reset", body={"email": email})


def change_email(requests: int) -> Ask:
    # One caller may ask ten times an hour.
    callers = [session_of(user) for user in create_users(-(-requests // 10))]
    turns = iter(callers * 10)
    return lambda email: call("change_email", next(turns), {"email": email, "password": PASSWORD})


OPERATIONS = [register, login, request_email_verification, request_password_reset, change_email]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_known_and_unknown_addresses_get_the_same_answer(operation: Callable[[int], Ask]) -> None:
    ask = operation(2)
    (known,) = create_users(1)
    answers = [ask(email) for email in (known.email, f"unknown-{known.email}")]
    first, second = [(answer.status_code, set(answer.headers.keys()), without_id(answer)) for answer in answers]
    assert first == second


@pytest.mark.slow
@pytest.mark.usefixtures("own_database")  # its thousands of events would keep the mails of other tests waiting
@pytest.mark.parametrize("operation", OPERATIONS)
def test_known_and_unknown_addresses_take_the_same_time(operation: Callable[[int], Ask]) -> None:
    found = [chance_to_take_longer(operation(2 * PAIRS + 1))]
    if not LEAST <= found[0] <= MOST:
        found.append(chance_to_take_longer(operation(2 * PAIRS + 1)))  # the machine may have had something else to do
    assert any(LEAST <= chance <= MOST for chance in found), found


def chance_to_take_longer(ask: Ask) -> float:
    """How often a request with a known address takes longer than one with an unknown (Mann-Whitney: U / n²)."""
    durations: dict[bool, list[float]] = {True: [], False: []}
    users = create_users(PAIRS)
    ask(f"warm-up-{users[0].email}")
    for number, user in enumerate(users):
        # Known first, then unknown first: what the service still does for one request slows both kinds alike.
        for is_known in (True, False) if number % 2 else (False, True):
            email = user.email if is_known else f"{uuid.uuid4().hex[:12]}@example.com"
            durations[is_known].append(duration(ask, email))
    return area_under_curve(durations[True], durations[False])


def duration(ask: Ask, email: str) -> float:
    started = time.perf_counter()
    answer = ask(email)
    seconds = time.perf_counter() - started
    assert answer.status_code in (202, 401), answer.text
    return seconds


def area_under_curve(ones: Sequence[float], others: Sequence[float]) -> float:
    """The chance that one of the first is greater than one of the second; ties count half."""
    ordered = sorted(others)
    below = sum((bisect_left(ordered, one) + bisect_right(ordered, one)) / 2 for one in ones)
    return below / (len(ones) * len(others))


def without_id(answer: Any) -> Any:
    return {**answer.json, "request_id": ""} if answer.data else answer.data


def test_the_measure_tells_a_difference_where_there_is_one() -> None:
    assert area_under_curve([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.5
    assert area_under_curve([4.0, 5.0], [1.0, 2.0, 3.0]) == 1.0
