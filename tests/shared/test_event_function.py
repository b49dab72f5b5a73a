"""What a handler of events may take."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cloudevents.http import CloudEvent
from flask import Flask, request

from shared.event_function import event_function
from shared.registry import EVENT_FUNCTIONS
from shared.schedules import ScheduleFired


@pytest.fixture(autouse=True)
def known_functions() -> Iterator[None]:
    """Takes what a test registers out of the registry again."""
    known = dict(EVENT_FUNCTIONS)
    yield
    EVENT_FUNCTIONS.clear()
    EVENT_FUNCTIONS.update(known)


def headers(type_: str) -> dict[str, str]:
    event = {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "/tests", "type": type_}
    return {"Content-Type": "application/json", **{f"ce-{name}": value for name, value in event.items()}}


def status(function: Any, data: Any, sent: dict[str, str]) -> int:
    """The status of the answer to one delivery."""
    with Flask("tested").test_request_context("/", method="POST", data=json.dumps(data), headers=sent):
        code: int = function(request).status_code
    return code


def test_a_handler_gets_the_envelope_where_it_asks_for_it() -> None:
    taken: list[CloudEvent] = []

    @event_function(ScheduleFired)
    def takes_both(event: ScheduleFired, envelope: CloudEvent) -> None:
        taken.append(envelope)

    sent = headers("dev.knative.sources.ping")
    assert status(takes_both, {"a": 1}, sent) == 204
    assert [(envelope["id"], envelope.data) for envelope in taken] == [(sent["ce-id"], {"a": 1})]


def test_an_event_of_a_schedule_without_a_meaning_is_taken() -> None:
    taken: list[ScheduleFired] = []

    @event_function(ScheduleFired)
    def takes_the_event(event: ScheduleFired) -> None:
        taken.append(event)

    sent = headers("dev.knative.sources.ping")
    assert status(takes_the_event, {}, sent) == 204
    assert taken == [ScheduleFired()]


def test_a_parameter_that_nobody_gives_is_an_error_at_import() -> None:
    with pytest.raises(TypeError, match="takes connection, which nobody gives it"):

        @event_function(ScheduleFired)
        def takes_too_much(event: ScheduleFired, connection: int) -> None:
            pass
