"""Functions behind events: what is a CloudEvent and what is not, and that each takes effect once."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response, request
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from sqlalchemy import Connection, func, insert, select, update

from knative.local.supervisor import Process, Supervisor
from shared.events.delivery import RETRIED_STATUSES, backoff
from shared.events.delivery_tokens import authorization
from shared.events.schedules import ScheduleFired
from shared.events.types import UserRegistered
from shared.framework.event_function import CLAIM_LIFETIME, Mark, event_function
from shared.framework.registry import EVENT_FUNCTIONS
from shared.postgresql.tables import processed_event, stored_answer
from shared.postgresql.transactions import transaction
from shared.runtime.manifests import triggers
from shared.runtime.problems import ServiceUnavailable
from tests.conftest import envelope, wait_for
from tests.servers import kill, start_again

REGISTERED = UserRegistered.type
DATA = {"user_id": "0198c0de-0000-7000-8000-000000000001", "locale": "ko"}


@pytest.fixture(autouse=True)
def known_functions() -> Iterator[None]:
    """Takes what a test registers out of the registry again."""
    known = dict(EVENT_FUNCTIONS)
    yield
    EVENT_FUNCTIONS.clear()
    EVENT_FUNCTIONS.update(known)


@pytest.fixture
def taken() -> list[UserRegistered]:
    """The events that had an effect."""
    return []


@pytest.fixture
def function(taken: list[UserRegistered]) -> Any:
    """A function whose effect is to keep what it takes."""

    @event_function(UserRegistered)
    def takes_registrations(event: UserRegistered) -> None:
        taken.append(event)

    return takes_registrations


def deliver(function: Any, data: Any, headers: dict[str, str], method: str = "POST") -> Response:
    """The answer to one delivery; bytes are sent as they are."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    name = function.__name__.replace("_", "-")
    headers = {"Content-Type": "application/json", **authorization(name), **headers}
    with Flask("tested").test_request_context("/", method=method, data=body, headers=headers):
        response: Response = function(request)
    return response


def test_an_event_delivered_twice_takes_effect_once(function: Any, taken: list[UserRegistered]) -> None:
    headers = envelope(REGISTERED)
    assert [deliver(function, DATA, headers).status_code for _ in range(2)] == [204, 204]
    assert len(taken) == 1


def test_an_event_delivered_many_times_at_once_takes_effect_once(function: Any, taken: list[UserRegistered]) -> None:
    headers = envelope(REGISTERED)
    with ThreadPoolExecutor(4) as pool:
        statuses = {answer.status_code for answer in pool.map(lambda _: deliver(function, DATA, headers), range(12))}
    assert 204 in statuses
    assert statuses <= {204, 409}
    assert len(taken) == 1


def test_the_same_id_from_another_source_is_another_event(function: Any, taken: list[UserRegistered]) -> None:
    headers = envelope(REGISTERED)
    deliver(function, DATA, headers)
    deliver(function, DATA, headers | {"ce-source": "/elsewhere"})
    assert len(taken) == 2


def test_a_structured_event_is_taken_too(function: Any, taken: list[UserRegistered]) -> None:
    event = {name.removeprefix("ce-"): value for name, value in envelope(REGISTERED).items()}
    structured = event | {"datacontenttype": "application/json", "data": DATA}
    response = deliver(function, structured, {"Content-Type": "application/cloudevents+json"})
    assert response.status_code == 204
    assert [str(event.user_id) for event in taken] == [DATA["user_id"]]


NO_EVENT = "The request is not a CloudEvent (version 1.0) in binary or structured mode."
BAD_IDENTITY = "The source or the id of the event is too long or not printable."
NO_ID = "The id of the event is missing, empty or not a string."
NO_URI = "The source of the event is not a URI reference."
NO_TIME = "The time of the event is not an RFC 3339 timestamp."
NO_OBJECT = "The data of the event is not a JSON object."


@pytest.mark.parametrize(
    "time",
    [
        *("2025-01-02T03:04:05Z", "2025-01-02t03:04:05.25z", "2025-01-02T12:04:05.123456789+09:00"),
        "2024-02-29T23:59:59-23:59",
    ],
)
def test_a_time_is_taken_however_rfc_3339_lets_it_be_written(
    function: Any, taken: list[UserRegistered], time: str
) -> None:
    assert deliver(function, DATA, envelope(REGISTERED, time=time)).status_code == 204
    assert len(taken) == 1


@pytest.mark.parametrize(
    "time",
    [
        *("", "soon", "2025-01-02", "2025-01-02T03:04:05", "2025-01-02T03:04Z", "20250102T030405Z", "1735787045"),
        *("2025-01-02 03:04:05Z", "2025-W01-4T03:04:05Z", "2025-01-02T03:04:05+0900", "2025-01-02T03:04:05,5Z"),
        *("2025-02-30T03:04:05Z", "2025-01-02T24:00:00Z", "2025-01-02T03:04:05+24:00", "2025-01-02T03:04:05+09:00:30"),
        # There is no such time in UTC that Python could read again.
        *("0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"),
    ],
)
def test_a_time_that_is_none_of_rfc_3339_is_a_400(function: Any, taken: list[UserRegistered], time: str) -> None:
    response = deliver(function, DATA, envelope(REGISTERED, time=time))
    assert (response.status_code, response.get_json()["detail"], taken) == (400, NO_TIME, [])


@pytest.mark.parametrize(
    ("change", "body", "reason"),
    [
        ({"ce-id": None}, b"{}", NO_EVENT),
        ({"ce-id": ""}, b"{}", NO_ID),
        ({"ce-id": "x" * 600}, b"{}", BAD_IDENTITY),
        ({"ce-id": "1\t2"}, b"{}", BAD_IDENTITY),
        ({"ce-source": None}, b"{}", NO_EVENT),
        ({"ce-source": "a b"}, b"{}", NO_URI),
        ({"ce-source": "/%zz"}, b"{}", NO_URI),
        ({"ce-with-hyphen": "a"}, b"{}", "The name of an attribute contains characters other than a to z and 0 to 9."),
        ({"ce-type": None}, b"{}", NO_EVENT),
        ({"ce-specversion": None}, b"{}", NO_EVENT),
        ({"ce-specversion": "9.9"}, b"{}", NO_EVENT),
        ({"ce-specversion": "0.3"}, b"{}", "The event is not a CloudEvent of version 1.0."),
        ({}, b"{", NO_OBJECT),
        ({}, b"\xff", NO_OBJECT),
        ({}, b"", NO_OBJECT),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"[]", NO_OBJECT),
    ],
    ids=str,
)
def test_what_is_no_binary_cloud_event_is_a_400(
    function: Any, taken: list[UserRegistered], change: dict[str, str | None], body: bytes, reason: str
) -> None:
    headers = envelope(REGISTERED) | change
    response = deliver(function, body, {name: value for name, value in headers.items() if value is not None})
    assert (response.status_code, response.content_type) == (400, "application/problem+json")
    assert response.get_json()["detail"] == reason
    assert taken == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"nonsense",
        b'"text"',
        b'{"specversion": "1.0", "id": "\\u0000", "source": "/", "type": "com.aegis.user.registered.v1", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": ["x"], "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": "com.aegis.user.registered.v1"}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": "com.aegis.user.registered.v1", "data_base64": "!"}',
        b'{"specversion": 1, "id": "1", "source": "/", "type": "com.aegis.user.registered.v1", "data": {}}',
        b"[" * 50_000,
        b'{"specversion": "1.0", "id": {}, "source": "/", "type": ["x"], "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": "\\ud800", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": "x", "requestid": "\\u0000", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": "x", "time": 1767323045, "data": {}}',
    ],
)
def test_what_is_no_structured_cloud_event_is_a_400(function: Any, taken: list[UserRegistered], body: bytes) -> None:
    response = deliver(function, body, {"Content-Type": "application/cloudevents+json"})
    assert (response.status_code, response.content_type) == (400, "application/problem+json")
    assert taken == []


@pytest.mark.parametrize("data", [[], "text", 1, None, True])
def test_data_that_is_no_object_is_refused_for_good(function: Any, taken: list[UserRegistered], data: Any) -> None:
    response = deliver(function, data, envelope(REGISTERED))
    assert (response.status_code, response.get_json()["detail"]) == (400, NO_OBJECT)
    assert taken == []


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        ({}, "user_id (missing), locale (missing)"),
        ({**DATA, "user_id": "Kim"}, "user_id (uuid_parsing)"),
        ({**DATA, "user_id": 1}, "user_id (uuid_type)"),
        ({**DATA, "locale": ["ko"]}, "locale (literal_error)"),
        ({**DATA, "locale": None}, "locale (literal_error)"),
    ],
    ids=["nothing", "no UUID", "a number", "a list", "null"],
)
def test_data_that_is_not_the_events_is_refused_for_good_with_where_and_why(
    function: Any, taken: list[UserRegistered], data: Any, faults: str
) -> None:
    response = deliver(function, data, envelope(REGISTERED))
    assert response.status_code == 422
    assert response.get_json()["detail"] == f"The data does not match the type {REGISTERED}: {faults}."
    assert taken == []


@pytest.mark.parametrize("type_", ["com.aegis.user.registered.v9", "com.aegis.user.logged_in.v1", "x", "한"])
def test_an_event_of_another_type_or_version_is_refused_for_good(
    function: Any, taken: list[UserRegistered], type_: str
) -> None:
    event = {name.removeprefix("ce-"): value for name, value in envelope(type_).items()}
    response = deliver(function, event | {"data": DATA}, {"Content-Type": "application/cloudevents+json"})
    assert response.status_code == 422
    assert response.get_json()["detail"] == f"takes_registrations does not handle events of the type {type_}."
    assert taken == []


def test_the_reason_of_a_refusal_fits_what_a_dead_letter_keeps_of_it(function: Any) -> None:
    """Knative keeps the first 1,024 bytes of an answer."""
    assert len(deliver(function, DATA, envelope("x" * 5000)).data) < 1024
    assert len(deliver(function, {"locale": "x" * 5000}, envelope(REGISTERED)).data) < 1024


def test_get_is_a_405(function: Any) -> None:
    response = deliver(function, b"", {}, method="GET")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


def test_an_event_of_a_schedule_without_a_meaning_is_taken() -> None:
    taken: list[ScheduleFired] = []

    @event_function(ScheduleFired, schedule="0 0 * * *")
    def takes_the_event(event: ScheduleFired) -> None:
        taken.append(event)

    sent = envelope(ScheduleFired.type)
    assert deliver(takes_the_event, {}, sent).status_code == 204
    assert taken == [ScheduleFired()]


def test_a_parameter_that_nobody_gives_is_an_error_at_import() -> None:
    with pytest.raises(TypeError, match="takes caller, which is not available"):

        @event_function(ScheduleFired, schedule="0 0 * * *")
        def takes_too_much(event: ScheduleFired, caller: int) -> None:
            pass


def test_what_takes_all_that_it_is_sent_is_given_no_event() -> None:
    with pytest.raises(TypeError, match="takes event, which is not available"):

        @event_function()
        def takes_an_event(event: ScheduleFired, body: bytes) -> None:
            pass


# --- what a handler writes, and the mark


def written(name: str) -> int:
    """How many rows a handler of this test has written."""
    with transaction() as connection:
        query = select(func.count()).select_from(stored_answer).where(stored_answer.c.id == name.encode())
        return connection.scalar(query) or 0


def write(connection: Connection, name: str) -> None:
    connection.execute(insert(stored_answer).values(id=name.encode(), fingerprint=b""))


def processed(headers: dict[str, str]) -> list[bool]:
    """Of each function that has taken the event: whether it has processed it."""
    event_id = f"{headers['ce-source']} {headers['ce-id']}"
    with transaction() as connection:
        query = select(processed_event.c.done_at.is_not(None)).where(processed_event.c.event_id == event_id)
        return list(connection.scalars(query))


def test_what_a_handler_writes_and_the_mark_are_one_transaction() -> None:
    headers, fails = envelope(REGISTERED), [True, False]

    @event_function(UserRegistered)
    def writes(event: UserRegistered, mark: Mark) -> None:
        with transaction() as connection:
            write(connection, headers["ce-id"])
            mark(connection)
            if fails.pop(0):
                raise ServiceUnavailable

    assert deliver(writes, DATA, headers).status_code == 503
    assert (written(headers["ce-id"]), processed(headers)) == (0, [])
    assert [deliver(writes, DATA, headers).status_code for _ in range(2)] == [204, 204]
    assert (written(headers["ce-id"]), processed(headers), fails) == (1, [True], [])


def let_the_claim_expire(headers: dict[str, str]) -> None:
    """As if the delivery had begun so long ago."""
    with transaction() as connection:
        connection.execute(
            update(processed_event)
            .where(processed_event.c.event_id == f"{headers['ce-source']} {headers['ce-id']}")
            .values(claimed_at=processed_event.c.claimed_at - CLAIM_LIFETIME)
        )


def test_a_delivery_while_another_is_under_way_comes_again_later(function: Any, taken: list[UserRegistered]) -> None:
    headers = envelope(REGISTERED)
    during: list[Response] = []

    @event_function(UserRegistered)
    def takes_its_time(event: UserRegistered) -> None:
        during.append(deliver(takes_its_time, DATA, headers))

    assert deliver(takes_its_time, DATA, headers).status_code == 204
    assert [response.status_code for response in during] == [409]
    assert 409 in RETRIED_STATUSES


def test_of_a_delivery_that_was_taken_for_dead_nothing_is_written_any_more() -> None:
    headers = envelope(REGISTERED)
    later: list[int] = []
    names = ["the first", "the second"]

    @event_function(UserRegistered)
    def asks_and_writes(event: UserRegistered, mark: Mark) -> None:
        name = names.pop(0) + headers["ce-id"]
        if names:
            let_the_claim_expire(headers)
            later.append(deliver(asks_and_writes, DATA, headers).status_code)
        with transaction() as connection:
            write(connection, name)
            mark(connection)

    assert deliver(asks_and_writes, DATA, headers).status_code == 503
    assert later == [204]
    assert (written("the first" + headers["ce-id"]), written("the second" + headers["ce-id"])) == (0, 1)
    assert processed(headers) == [True]


def test_what_is_written_with_the_mark_is_not_done_again_when_word_of_it_is_lost() -> None:
    headers = envelope(REGISTERED)

    @event_function(UserRegistered)
    def loses_word(event: UserRegistered, mark: Mark) -> None:
        with transaction() as connection:
            write(connection, headers["ce-id"])
            mark(connection)
        raise ServiceUnavailable

    assert [deliver(loses_word, DATA, headers).status_code for _ in range(2)] == [503, 204]
    assert (written(headers["ce-id"]), processed(headers)) == (1, [True])


def test_a_database_that_is_away_for_a_moment_after_an_effect_does_not_let_it_happen_again(
    own_database: Process, supervisor: Supervisor
) -> None:
    headers = envelope(REGISTERED)
    sent: list[UserRegistered] = []

    @event_function(UserRegistered)
    def sends(event: UserRegistered) -> None:
        sent.append(event)
        kill(own_database)

    with ThreadPoolExecutor(1) as pool:
        delivery = pool.submit(deliver, sends, DATA, headers)
        wait_for(lambda: sent and own_database.popen and own_database.popen.poll() is not None)
        start_again(supervisor, own_database)
        assert delivery.result().status_code == 204
    assert deliver(sends, DATA, headers).status_code == 204
    assert len(sent) == 1


def test_a_claim_outlives_every_delivery_and_the_retries_outlive_the_claim() -> None:
    for trigger in triggers():
        waits = [backoff(trigger, attempt) for attempt in range(trigger.retries)]
        assert 2 * trigger.timeout_seconds <= CLAIM_LIFETIME.total_seconds() < sum(waits) / 2


attributes = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(st.characters(exclude_categories=()), max_size=20)
        for name in ("id", "source", "time", "subject", "requestid", "partitionkey", "dataschema")
    },
)


@settings_of_hypothesis(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes, st.text(st.characters(exclude_categories=()), max_size=5))
def test_whatever_an_event_holds_it_is_processed_or_refused_for_good(
    function: Any, changes: dict[str, str], locale: str
) -> None:
    known = {name.removeprefix("ce-"): value for name, value in envelope(REGISTERED).items()}
    event = json.dumps(known | changes | {"data": DATA | {"locale": locale}}).encode()
    response = deliver(function, event, {"Content-Type": "application/cloudevents+json"})
    assert response.status_code in (204, 400, 422)
