"""What Idempotency-Key promises to a client that sends a request again."""

import json
import os
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select, text, update
from typing_extensions import TypedDict

from knative.local.supervisor import Process, Supervisor
from shared.framework.http_function import http_function
from shared.framework.idempotency import CLAIM_LIFETIME, LIFETIME
from shared.http.request import Reply
from shared.identity.access_tokens import Caller
from shared.postgresql import pool, transactions
from shared.postgresql.tables import account, processed_event, session, stored_answer
from shared.postgresql.transactions import transaction
from shared.redis import cache
from shared.runtime.problems import (
    Forbidden,
    NoSuchItem,
    Problem,
    ReauthenticationRequired,
    ServiceUnavailable,
    TooManyRequests,
    Unauthenticated,
)
from shared.text.fields import RequestBody
from tests.authenticator import with_totp
from tests.conftest import PASSWORD, User, bearer, call, create_user, events_of, log_in, session_of, wait_for
from tests.servers import Serve, kill, start_again


def a_key() -> dict[str, str]:
    return {"Idempotency-Key": f'"{uuid.uuid4()}"'}


def credentials(user: User, password: str = PASSWORD) -> dict[str, str]:
    return {"email": user.email, "password": password}


def sessions(user: User) -> int:
    with transaction() as connection:
        return connection.scalar(select(func.count()).where(session.c.account_id == user.id)) or 0


class Effect(RequestBody):
    name: str


class Written(TypedDict):
    name: str
    number: str


def write(name: str) -> None:
    """An effect in the database."""
    with transaction() as connection:
        connection.execute(insert(processed_event).values(function=name, event_id=str(uuid.uuid4())))


def written(name: str) -> int:
    with transaction() as connection:
        return connection.scalar(select(func.count()).where(processed_event.c.function == name)) or 0


def operation(serve: Serve, work: Callable[[str], None], headers: dict[str, str] | None = None) -> FlaskClient:
    """A POST whose answer is another each time, and whose effect is `work`."""

    @http_function("POST", "/effects", status=201, limits={})
    def post_effect(body: Effect) -> Reply[Written]:
        work(body.name)
        return Reply(Written(name=body.name, number=str(uuid.uuid4())), headers or {})

    return serve(post_effect)


def send(client_: FlaskClient, key: dict[str, str], name: str) -> Any:
    return client_.post("/effects", json={"name": name}, headers=key)


def age(by: timedelta) -> None:
    """Lets all answers and claims be older."""
    with transaction() as connection:
        connection.execute(update(stored_answer).values(claimed_at=stored_answer.c.claimed_at - by))


def test_a_log_in_that_is_sent_again_gets_the_same_tokens_and_starts_no_other_session(active_user: User) -> None:
    key = a_key()
    first = call("login", body=credentials(active_user), headers=key)
    second = call("login", body=credentials(active_user), headers=key)
    assert first.status_code == second.status_code == 200
    assert second.data == first.data
    assert second.headers["Content-Type"] == first.headers["Content-Type"]
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert sessions(active_user) == 1
    assert events_of(active_user) == ["logged_in"]


def change_the_password(user: User, tokens: dict[str, Any]) -> None:
    new = {"current_password": PASSWORD, "new_password": "another fine horse battery"}
    assert call("change_password", tokens, new).status_code == 204


def log_out(_: User, tokens: dict[str, Any]) -> None:
    assert call("logout", tokens).status_code == 204


def set_up_an_app(user: User, _: dict[str, Any]) -> None:
    with_totp(user)


def suspend(user: User, _: dict[str, Any]) -> None:
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(status="suspended"))


@pytest.mark.parametrize(
    ("change", "status"), [(change_the_password, 401), (suspend, 401), (set_up_an_app, 401), (log_out, 200)]
)
def test_tokens_do_not_come_again_once_a_new_log_in_would_not_get_them(
    active_user: User, change: Callable[[User, dict[str, Any]], None], status: int
) -> None:
    key = a_key()
    first = call("login", body=credentials(active_user), headers=key)
    change(active_user, first.json)
    again = call("login", body=credentials(active_user), headers=key)
    assert again.status_code == status
    assert "Idempotency-Replayed" not in again.headers
    assert again.json.get("access_token") != first.json["access_token"]
    if status == 200:  # a session of its own, and its answer comes again like any
        assert call("login", body=credentials(active_user), headers=key).data == again.data


def test_status_and_headers_of_the_answer_come_again(serve: Serve, address: str) -> None:
    kept = {"ETag": '"1"', "Location": "/effects/1", "Link": '</effects>; rel="collection"'}
    client_, key = operation(serve, write, kept), a_key()
    first, second = send(client_, key, address), send(client_, key, address)
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.data == first.data
    for name, value in kept.items():
        assert first.headers[name] == second.headers[name] == value
    assert written(address) == 1


def test_an_answer_without_a_body_comes_again(address: str) -> None:
    key, body = a_key(), {"email": address, "password": PASSWORD}
    first, second = (call("register", body=body, headers=key) for _ in range(2))
    assert (first.status_code, first.data) == (second.status_code, second.data) == (202, b"")
    assert "Content-Type" not in second.headers


def test_without_a_key_each_request_takes_effect(active_user: User) -> None:
    assert log_in(active_user) != log_in(active_user)
    assert sessions(active_user) == 2


def test_the_key_with_another_body_is_a_422_and_changes_nothing(active_user: User) -> None:
    key = a_key()
    call("login", body=credentials(active_user), headers=key)
    for body in (credentials(active_user, "another password"), {**credentials(active_user), "email": "a@example.com"}):
        answer = call("login", body=body, headers=key)
        assert answer.status_code == 422
        assert answer.json["type"] == "urn:aegis:problem:idempotency-key-reused"
    assert sessions(active_user) == 1


def test_the_key_with_another_query_is_a_422(serve: Serve, address: str) -> None:
    client_, key = operation(serve, write), a_key()
    assert client_.post("/effects?a=1", json={"name": address}, headers=key).status_code == 201
    assert client_.post("/effects?a=2", json={"name": address}, headers=key).status_code == 422


def test_the_key_means_something_else_in_another_operation(active_user: User, address: str) -> None:
    key = a_key()
    assert call("login", body=credentials(active_user), headers=key).status_code == 200
    registration = call("register", body={"email": "x" + address, "password": PASSWORD}, headers=key)
    assert registration.status_code == 202
    assert "Idempotency-Replayed" not in registration.headers


def test_the_key_means_something_else_for_another_caller(active_user: User, address: str, serve: Serve) -> None:
    @http_function("POST", "/mine", limits={})
    def post_mine(caller: Caller) -> Written:
        return Written(name=str(caller.user_id), number="")

    client_, key, other = serve(post_mine), a_key(), create_user("x" + address)
    for user in (active_user, other, active_user):
        answer: Any = client_.post("/mine", headers={**key, **bearer(session_of(user))})
        assert answer.json["name"] == str(user.id)


def test_of_many_at_once_one_takes_effect_and_all_get_its_answer_in_the_end(active_user: User) -> None:
    key = a_key()
    body = json.dumps(credentials(active_user)).encode()
    headers = {"Content-Type": "application/json", **key}
    request = urllib.request.Request(os.environ["PUBLIC_URL"] + "/api/v1/users/login", body, headers)
    start = threading.Barrier(20)

    def attempt(_: int) -> tuple[int, bytes]:
        start.wait()
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(attempt, range(20)))
    assert {status for status, _ in answers} <= {200, 409}
    assert len({tokens for status, tokens in answers if status == 200}) == 1
    assert sessions(active_user) == 1
    assert call("login", body=credentials(active_user), headers=key).data in {tokens for _, tokens in answers}


def test_while_the_first_is_under_way_the_next_is_told_to_come_back(serve: Serve, address: str) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work(name: str) -> None:
        begun.set()
        assert may_end.wait(30)
        write(name)

    client_, key = operation(serve, work), a_key()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, client_.application.test_client(), key, address)
        assert begun.wait(30)
        second = send(client_, key, address)
        other = client_.post("/effects", json={"name": "other"}, headers=key)
        may_end.set()
        assert first.result().status_code == 201
    assert (second.status_code, second.headers["Retry-After"]) == (409, "1")
    assert second.json["type"] == "urn:aegis:problem:request-in-progress"
    assert other.status_code == 422
    assert send(client_, key, address).data == first.result().data


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            '""',
            "too-short",
            "sixteen characters bare",
            "sixteen-characters;a=1",
            '"too short"',
            '"' + "x" * 256 + '"',
        ),
        *('"sixteen\tcharacters"', '"sixteen \\" characters"', '"sixteen characters";a=1'),
        *(
            '"sixteen characters", "sixteen characters"',
            '"한국한국한국한국한국한국한국한국"'.encode().decode("latin-1"),
        ),
    ],
)
def test_a_malformed_key_is_a_400_and_changes_nothing(active_user: User, key: str) -> None:
    answer = call("login", body=credentials(active_user), headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert answer.json["type"] == "urn:aegis:problem:invalid-idempotency-key"
    assert sessions(active_user) == 0


@pytest.mark.parametrize("form", ['"{}"', "{}", ' "{}" ', '"{} !#[]~ with blanks"', '"{:~<255}"'])
def test_a_key_may_be_any_printable_text(active_user: User, form: str) -> None:
    key = form.format(str(uuid.uuid4()))
    assert call("login", body=credentials(active_user), headers={"Idempotency-Key": key}).status_code == 200


def test_a_problem_is_an_answer_too(serve: Serve, address: str) -> None:
    def work(name: str) -> None:
        write(name)
        raise NoSuchItem

    client_, key = operation(serve, work), a_key()
    first, second = (send(client_, key, address) for _ in range(2))
    assert (first.status_code, first.data) == (second.status_code, second.data) == (404, first.data)
    assert second.content_type == "application/problem+json"
    assert second.headers["Idempotency-Replayed"] == "true"
    assert written(address) == 1


@pytest.mark.parametrize("problem", [Unauthenticated(), Forbidden(), ReauthenticationRequired("login-too-old")])
def test_after_a_step_up_the_same_key_is_performed(serve: Serve, address: str, problem: Problem) -> None:
    refusals = [problem]

    def work(name: str) -> None:
        if refusals:
            raise refusals.pop()

    client_, key = operation(serve, work), a_key()
    assert send(client_, key, address).status_code == problem.status
    assert send(client_, key, address).status_code == 201


def test_a_key_is_the_same_with_quotes_and_without(active_user: User) -> None:
    key = str(uuid.uuid4())
    quoted, bare = (
        call("login", body=credentials(active_user), headers={"Idempotency-Key": form}) for form in (f'"{key}"', key)
    )
    assert (quoted.status_code, bare.data) == (200, quoted.data)
    assert sessions(active_user) == 1


def test_what_is_refused_before_the_operation_uses_up_no_key(active_user: User) -> None:
    key = a_key()
    assert call("login", body={"email": active_user.email}, headers=key).status_code == 422
    assert call("login", body=credentials(active_user), headers=key).status_code == 200


def test_a_write_stands_beside_the_problem_that_came_after_it(serve: Serve, address: str) -> None:
    """As a try that counts: a key must not make it count for nothing."""

    def work(name: str) -> None:
        write(name)
        raise NoSuchItem

    client_, key = operation(serve, work), a_key()
    assert [send(client_, key, address).status_code for _ in range(2)] == [404, 404]
    assert written(address) == 1


def test_an_answer_that_says_to_come_later_is_not_kept_but_what_was_written_is(serve: Serve, address: str) -> None:
    def work(name: str) -> None:
        write(name)
        if written(name) < 3:
            raise TooManyRequests

    client_, key = operation(serve, work), a_key()
    assert [send(client_, key, address).status_code for _ in range(3)] == [429, 429, 201]
    assert written(address) == 3
    assert send(client_, key, address).headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("error", [ServiceUnavailable, RuntimeError])
def test_a_failure_of_ours_changes_nothing_and_the_next_request_starts_anew(
    serve: Serve, address: str, error: type[Exception]
) -> None:
    errors = [error]

    def work(name: str) -> None:
        write(name)
        if errors:
            raise errors.pop()

    client_, key = operation(serve, work), a_key()
    assert send(client_, key, address).status_code in (500, 503)
    assert written(address) == 0
    assert send(client_, key, address).status_code == 201
    assert written(address) == 1


def test_a_failure_inside_the_transaction_changes_nothing(serve: Serve, address: str) -> None:
    errors = [NoSuchItem]

    def work(name: str) -> None:
        with transaction() as connection:
            connection.execute(insert(processed_event).values(function=name, event_id="1"))
            if errors:
                raise errors[0]

    client_, key = operation(serve, work), a_key()
    assert send(client_, key, address).status_code == 404
    assert written(address) == 0
    assert send(client_, key, address).headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("moment", ["before the write", "after the write"])
def test_a_database_that_dies_in_between_keeps_neither_change_nor_answer(
    own_database: Process, supervisor: Supervisor, serve: Serve, address: str, moment: str
) -> None:
    alive = [True]

    def work(name: str) -> None:
        if moment == "after the write":
            write(name)
        if alive:
            alive.clear()
            kill(own_database)
        if moment == "before the write":
            write(name)

    client_, key = operation(serve, work), a_key()
    failed = send(client_, key, address)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "1")
    start_again(supervisor, own_database)
    assert wait_for(lambda: send(client_, key, address).status_code != 503 or None)
    assert written(address) == 0
    with transaction() as connection:
        assert connection.scalars(select(stored_answer.c.answer)).all() == [None]
    age(CLAIM_LIFETIME)
    assert send(client_, key, address).status_code == 201
    assert written(address) == 1


def test_an_answer_whose_commit_came_through_is_kept_though_word_of_it_was_lost(
    serve: Serve, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = transactions.LastTransaction.commit

    def lose_the_word(last: transactions.LastTransaction) -> None:
        has_written = last._connection is not None
        commit(last)
        if has_written:
            raise ConnectionResetError

    client_, key = operation(serve, write), a_key()
    with monkeypatch.context() as lossy:
        lossy.setattr(transactions.LastTransaction, "commit", lose_the_word)
        assert send(client_, key, address).status_code == 503
    again = send(client_, key, address)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert written(address) == 1


def test_the_cache_learns_of_a_change_when_it_is_committed_and_never_of_one_that_is_not(
    serve: Serve, address: str
) -> None:
    seen: list[bytes | None] = []
    fails = [True]

    def work(name: str) -> None:
        write(name)
        cache.put(name, value="new", seconds=60)
        seen.extend(cache.get(name))
        if fails:
            fails.clear()
            raise ServiceUnavailable

    client_, key = operation(serve, work), a_key()
    assert send(client_, key, address).status_code == 503
    assert cache.get(address) == [None]
    assert send(client_, key, address).status_code == 201
    assert seen == [None, None]
    assert cache.get(address) == [b"new"]


def test_stored_answers_and_keys_cannot_be_read_in_the_table(own_database: Process, address: str) -> None:
    user, key = create_user(address), a_key()
    tokens = call("login", body=credentials(user), headers=key).json
    with transaction() as connection:
        (row,) = connection.execute(select(stored_answer)).all()
    content = row.id + row.fingerprint + row.answer
    for private in (*(str(value) for value in tokens.values()), key["Idempotency-Key"].strip('"'), address, PASSWORD):
        assert private.encode() not in content


def test_a_stored_answer_that_was_moved_to_another_key_does_not_open(own_database: Process, address: str) -> None:
    users = [create_user(address), create_user("x" + address)]
    keys = [a_key(), a_key()]
    for user, key in zip(users, keys, strict=True):
        call("login", body=credentials(user), headers=key)
    with transaction() as connection:
        connection.execute(text("UPDATE stored_answer a SET answer = b.answer FROM stored_answer b WHERE a.id <> b.id"))
    assert call("login", body=credentials(users[0]), headers=keys[0]).status_code == 500


def test_after_a_day_the_key_may_be_used_anew(own_database: Process, serve: Serve, address: str) -> None:
    client_, key = operation(serve, write), a_key()
    send(client_, key, address)
    age(LIFETIME - timedelta(minutes=1))
    assert send(client_, key, address).headers["Idempotency-Replayed"] == "true"
    age(timedelta(minutes=2))
    answer = client_.post("/effects", json={"name": address}, headers=key)
    assert (answer.status_code, answer.headers.get("Idempotency-Replayed")) == (201, None)
    assert written(address) == 2


def test_a_request_that_is_taken_for_dead_can_change_nothing_when_it_comes_late(
    own_database: Process, serve: Serve, address: str
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work(name: str) -> None:
        is_first = not begun.is_set()
        begun.set()
        write(name)
        assert not is_first or may_end.wait(30)

    client_, key = operation(serve, work), a_key()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(send, client_.application.test_client(), key, address)
        assert begun.wait(30)
        assert send(client_, key, address).status_code == 409
        age(CLAIM_LIFETIME)
        second = send(client_, key, address)
        may_end.set()
        assert (second.status_code, late.result().status_code) == (201, 503)
    assert written(address) == 1
    third = send(client_, key, address)
    assert (third.data, third.headers["Idempotency-Replayed"]) == (second.data, "true")


def test_no_connection_is_lost_to_requests_that_fail(serve: Serve, address: str) -> None:
    """More failures than the pool has connections."""
    errors: list[type[Exception]] = [ServiceUnavailable, RuntimeError, NoSuchItem, TooManyRequests] * 4

    def work(name: str) -> None:
        write(name)
        if errors:
            raise errors.pop()

    client_ = operation(serve, work)
    statuses = [send(client_, a_key(), address).status_code for _ in range(17)]
    assert statuses == [429, 404, 500, 503] * 4 + [201]
    assert pool.engine().pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_get_takes_no_key(active_user: User) -> None:
    tokens, key = session_of(active_user), {"Idempotency-Key": "malformed"}
    assert call("get_profile", tokens, headers=key).status_code == 200


def test_logging_out_again_with_the_key_finds_the_session_ended(active_user: User) -> None:
    tokens, key = log_in(active_user), a_key()
    assert call("logout", tokens, headers=key).status_code == 204
    assert call("get_profile", tokens).status_code == 401
    assert call("logout", tokens, headers=key).status_code == 401
