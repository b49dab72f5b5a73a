"""Functions behind events: what is a CloudEvent and what is not, and that each takes effect once."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cloudevents.http import CloudEvent
from flask import Flask, Response, request

from shared.event_function import event_function
from shared.events import UserRegistered
from shared.registry import EVENT_FUNCTIONS
from shared.schedules import ScheduleFired
from tests.conftest import envelope

REGISTERED = UserRegistered.type
DATA = {"user_id": str(uuid.uuid4()), "locale": "ko"}


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
    headers = {"Content-Type": "application/json", **headers}
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
    assert statuses <= {204, 503}
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


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({"ce-id": None}, b"{}"),
        ({"ce-id": ""}, b"{}"),
        ({"ce-id": "x" * 600}, b"{}"),
        ({"ce-source": None}, b"{}"),
        ({"ce-specversion": "9.9"}, b"{}"),
        ({}, b"{"),
        ({}, b""),
    ],
    ids=str,
)
def test_what_is_no_binary_cloud_event_is_a_400(function: Any, change: dict[str, str | None], body: bytes) -> None:
    headers = envelope(REGISTERED) | change
    response = deliver(function, body, {name: value for name, value in headers.items() if value is not None})
    assert (response.status_code, response.content_type) == (400, "application/problem+json")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'"text"',
        b'{"specversion": "1.0", "id": "\\u0000", "source": "/", "type": "com.aegis.user.registered.v1", "data": {}}',
        b'{"specversion": "1.0", "id": "1", "source": "/", "type": ["x"], "data": {}}',
        b"[" * 50_000,
        b'{"specversion": "1.0", "id": {}, "source": "/", "type": ["x"], "data": {}}',
    ],
)
def test_what_is_no_structured_cloud_event_is_a_400(function: Any, body: bytes) -> None:
    response = deliver(function, body, {"Content-Type": "application/cloudevents+json"})
    assert (response.status_code, response.content_type) == (400, "application/problem+json")


@pytest.mark.parametrize("data", [[], "text", 1, None, {}, {"user_id": "no id", "locale": "ko"}, {"user_id": 1}])
def test_data_that_is_not_the_events_is_refused_for_good(function: Any, taken: list[UserRegistered], data: Any) -> None:
    assert deliver(function, data, envelope(REGISTERED)).status_code in (400, 422)
    assert taken == []


def test_an_event_of_another_type_is_refused_for_good(function: Any, taken: list[UserRegistered]) -> None:
    response = deliver(function, DATA, envelope("com.aegis.user.registered.v2"))
    assert response.status_code == 422
    assert REGISTERED in response.get_json()["detail"]
    assert taken == []


def test_get_is_a_405(function: Any) -> None:
    response = deliver(function, b"", {}, method="GET")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


def test_a_handler_gets_the_envelope_where_it_asks_for_it() -> None:
    taken: list[CloudEvent] = []

    @event_function(ScheduleFired)
    def takes_both(event: ScheduleFired, envelope: CloudEvent) -> None:
        taken.append(envelope)

    sent = envelope(ScheduleFired.type)
    assert deliver(takes_both, {"a": 1}, sent).status_code == 204
    assert [(event["id"], event.data) for event in taken] == [(sent["ce-id"], {"a": 1})]


def test_an_event_of_a_schedule_without_a_meaning_is_taken() -> None:
    taken: list[ScheduleFired] = []

    @event_function(ScheduleFired)
    def takes_the_event(event: ScheduleFired) -> None:
        taken.append(event)

    sent = envelope(ScheduleFired.type)
    assert deliver(takes_the_event, {}, sent).status_code == 204
    assert taken == [ScheduleFired()]


def test_a_parameter_that_nobody_gives_is_an_error_at_import() -> None:
    with pytest.raises(TypeError, match="takes connection, which nobody gives it"):

        @event_function(ScheduleFired)
        def takes_too_much(event: ScheduleFired, connection: int) -> None:
            pass
