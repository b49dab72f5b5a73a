"""`event_function`: turns a handler for some types of events into a function for functions-framework.

The handler's parameters say what it takes:

    event: Event            the validated data of the event
    envelope: CloudEvent    the event as it came, for its attributes

It serves CloudEvents over HTTP in either content mode. It registers as an HTTP function, because
functions-framework's own CloudEvent mode hands malformed JSON to the handler as bytes and answers 500 to a
structured event that is no object.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, get_type_hints

import functions_framework
from cloudevents import exceptions as cloudevents_exceptions
from cloudevents.http import CloudEvent, from_http
from flask import Request, Response
from functions_framework import HTTPFunction
from pydantic import ValidationError
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared import logs
from shared.database import transaction
from shared.events import Event
from shared.problems import InvalidRequest, MalformedRequest, MethodNotAllowed, ServiceUnavailable
from shared.registry import EVENT_FUNCTIONS, EventFunction
from shared.request import answer, empty_response
from shared.schedules import ScheduleFired
from shared.settings import Dependency
from shared.tables import processed_event

GIVEN = frozenset({"event", "envelope"})
MAX_IDENTITY_LENGTH = 512
CLAIM_LIFETIME = timedelta(seconds=30)
"""After so long a delivery that neither succeeded nor failed is taken for dead; twice what a Trigger gives it."""


def event_function(
    *events: type[Event] | type[ScheduleFired], uses: Collection[Dependency] = ()
) -> Callable[[Callable[..., None]], HTTPFunction]:
    """Registers a handler under its own name. Each event takes effect once, however often it is delivered.

    A delivery is claimed first and marked when the handler returns. When the handler raises, the claim is
    given back and the next delivery tries again. Only a process or a database that dies between an effect outside
    the database and the mark makes that effect happen twice.

    Args:
        events: the events that the handler takes; `ScheduleFired` for a function that runs at fixed times.
        uses: the dependencies that must be set, and that /health/ready reports.
    """

    def decorate(handler: Callable[..., None]) -> HTTPFunction:
        takes = frozenset(get_type_hints(handler)) - {"return"}
        if unknown := takes - GIVEN:
            raise TypeError(f"{handler.__name__} takes {', '.join(sorted(unknown))}, which nobody gives it")
        function = EVENT_FUNCTIONS[handler.__name__] = EventFunction(
            name=handler.__name__,
            handles={event.type: event for event in events},
            handler=handler,
            takes=takes,
            uses=frozenset(uses) | {"database"},
        )

        @functions_framework.http
        @functools.wraps(handler)
        def serve(request: Request) -> Response:
            return answer(function.name, "/", request, lambda body, _headers: _deliver(function, request, body))

        return serve

    return decorate


def _deliver(function: EventFunction, request: Request, body: bytes) -> Response:
    if request.method != "POST":
        raise MethodNotAllowed(["POST"])
    envelope = _envelope(request, body)
    if request_id := str(envelope.get("requestid", "")):
        logs.request_id.set(request_id)
    model = function.handles.get(envelope["type"])
    if model is None:
        raise InvalidRequest(f"This function takes {', '.join(function.handles)}.")
    try:
        event = model.model_validate(envelope.data)
    except ValidationError:
        raise InvalidRequest(f"The data is not that of a {model.type}.") from None

    with _claimed(function.name, f"{envelope['source']} {envelope['id']}") as first:
        if first:
            given: dict[str, Any] = {"event": event, "envelope": envelope}
            function.handler(**{name: given[name] for name in function.takes})
    return empty_response(204)


def _envelope(request: Request, body: bytes) -> CloudEvent:
    """The CloudEvent of a request.

    Raises:
        MalformedRequest: it is none, or its data is not a JSON object.
    """
    try:
        envelope = from_http(dict(request.headers.items()), body)
    except (
        cloudevents_exceptions.GenericException,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        RecursionError,
    ) as error:
        raise MalformedRequest("The request is not a CloudEvent (version 1.0) in binary or structured mode.") from error
    if not all(isinstance(envelope[name], str) for name in ("source", "id", "type")):
        raise MalformedRequest("The source, id or type of the event is no text.")
    identity = f"{envelope['source']}{envelope['id']}"
    if not (envelope["source"] and envelope["id"] and identity.isprintable() and len(identity) <= MAX_IDENTITY_LENGTH):
        raise MalformedRequest("The source or the id of the event is empty, too long or not printable.")
    if not isinstance(envelope.data, dict):
        raise MalformedRequest("The data of the event is not a JSON object.")
    return envelope


@contextmanager
def _claimed(function: str, event_id: str) -> Iterator[bool]:
    """Whether this delivery of an event is the one to take effect.

    Raises:
        ServiceUnavailable: another delivery of it is under way; this one may come again.
    """
    this: tuple[ColumnElement[bool], ...] = (
        processed_event.c.function == function,
        processed_event.c.event_id == event_id,
    )
    claim = (
        insert(processed_event)
        .values(function=function, event_id=event_id, claimed_at=func.now())
        .on_conflict_do_update(
            index_elements=["function", "event_id"],
            set_={"claimed_at": func.now()},
            where=processed_event.c.done_at.is_(None) & (processed_event.c.claimed_at < func.now() - CLAIM_LIFETIME),
        )
        .returning(processed_event.c.claimed_at)
    )
    with transaction() as connection:
        claimed_at = connection.scalar(claim)
        done = claimed_at is None and connection.scalar(select(processed_event.c.done_at).where(*this)) is not None
    if done:
        yield False
        return
    if claimed_at is None:
        raise ServiceUnavailable
    this = (*this, processed_event.c.claimed_at == claimed_at)  # not a claim that another delivery made since
    try:
        yield True
    except BaseException:
        with transaction() as connection:
            connection.execute(delete(processed_event).where(*this))
        raise
    with transaction() as connection:
        connection.execute(update(processed_event).where(*this).values(done_at=func.now()))
