"""`event_function`: turns a handler for some types of events into a function for functions-framework.

The handler's parameters declare what it needs:

    event: Event            the validated data of the event
    mark: Mark              marks the event as processed in a transaction of the handler: what it writes there happens
                            exactly once

It serves CloudEvents over HTTP in both content modes. It registers as an HTTP function, because functions-framework's
CloudEvent mode passes malformed JSON to the handler as bytes and answers 500 to a structured event that is not an
object.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, get_type_hints

import functions_framework
from cloudevents import exceptions as cloudevents_exceptions
from cloudevents.conversion import from_http
from cloudevents.http import CloudEvent
from flask import Request, Response
from functions_framework import HTTPFunction
from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared.events import cloud_events, delivery_tokens
from shared.events.schedules import ScheduleFired
from shared.events.types import Event
from shared.framework.registry import EVENT_FUNCTIONS, EventFunction
from shared.framework.scaling import EVENT, SCHEDULE, Delivery, Scaling
from shared.http.request import MAX_BODY_BYTES, answer, empty_response
from shared.postgresql.tables import processed_event
from shared.postgresql.transactions import transaction
from shared.runtime import logs, metrics
from shared.runtime.problems import InvalidRequest, MalformedRequest, MethodNotAllowed, Problem, ServiceUnavailable
from shared.runtime.resource_names import resource_name
from shared.runtime.settings import Dependency

GIVEN = frozenset({"event", "mark"})
GIVEN_UNREAD = frozenset({"headers", "body"})
MAX_UNREAD_BYTES = 1024 * 1024
"""Kafka's default limit for a record."""
MAX_IDENTITY_LENGTH = 512
DELIVERY = Delivery()
"""The default of a function with a Trigger."""
CLAIM_LIFETIME = timedelta(seconds=2 * DELIVERY.timeout_seconds)
"""After this time a delivery that neither succeeded nor failed counts as dead.

Twice a Trigger's timeout for a delivery, and more than the database and a provider can take together. The Triggers
retry for minutes after that.
"""
MARK_AGAIN_SECONDS = 1.0

Mark = Callable[[Connection], None]


class DeliveryUnderWay(Problem):
    """A 409: brokers and sources of Knative retry it like a 503, but it does not count as a failure on our side."""

    status = 409
    title = "Another delivery of this event is in progress"
    detail = "Deliver it again later. By then the other delivery has succeeded, failed or expired."


def event_function(
    *events: type[Event] | type[ScheduleFired],
    uses: Collection[Dependency] = (),
    scaling: Scaling | None = None,
    delivery: Delivery = DELIVERY,
    schedule: str = "",
) -> Callable[[Callable[..., None]], HTTPFunction]:
    """Register a handler under its name. Each event takes effect once, however often it is delivered.

    A delivery needs a token (shared/events/delivery_tokens.py). An event is identified by its source and id.

    The event is claimed before the handler runs, and marked as processed when it returns. If it raises, the claim is
    released and the next delivery tries again.

    Only a request to a provider can happen twice. Either the provider accepts it, and before the event is marked the
    process dies, or it freezes or has no database for longer than a claim lives. Or the provider's response is lost,
    which looks as if the request never arrived.

    Args:
        events: the event types that the handler takes; `ScheduleFired` for a function that runs at fixed times. Without
            any, the handler gets every request as `headers` and `body`, and must ignore duplicates itself.
        uses: the dependencies that must be configured, and that /health/ready reports.
        scaling: the class of load and the maximum number of pods; by default `EVENT`, or `SCHEDULE` with a schedule.
        delivery: how often and how long its Trigger tries each event.
        schedule: when `ScheduleFired` is sent, as five cron fields in UTC.
    """

    def decorate(handler: Callable[..., None]) -> HTTPFunction:
        takes = frozenset(get_type_hints(handler)) - {"return"}
        if unknown := takes - (GIVEN if events else GIVEN_UNREAD):
            raise TypeError(f"{handler.__name__} takes {', '.join(sorted(unknown))}, which is not available")
        if bool(schedule) != (ScheduleFired in events):
            raise TypeError(f"{handler.__name__} needs both a schedule and ScheduleFired, or neither")
        function = EVENT_FUNCTIONS[handler.__name__] = EventFunction(
            name=handler.__name__,
            handles={event.type: event for event in events},
            handler=handler,
            takes=takes,
            uses=frozenset(uses) | {"database", "deliveries"},
            scaling=scaling or (SCHEDULE if schedule else EVENT),
            delivery=delivery,
            schedule=schedule,
        )

        @functions_framework.http
        @functools.wraps(handler)
        def serve(request: Request) -> Response:
            return answer(
                function.name,
                "/",
                request,
                lambda body, _headers: _deliver(function, request, body),
                max_body_bytes=MAX_BODY_BYTES if events else MAX_UNREAD_BYTES,
            )

        return serve

    return decorate


def _deliver(function: EventFunction, request: Request, body: bytes) -> Response:
    if request.method != "POST":
        raise MethodNotAllowed(["POST"])
    type_, outcome = "other", "failed"
    try:
        delivery_tokens.authenticate(resource_name(function.name), request.headers.get("Authorization", ""))
        if not function.handles:
            headers = {name: value for name, value in request.headers.items() if name != "Authorization"}
            _call(function, headers=headers, body=body)
            outcome = "done"
            return empty_response(204)
        envelope = _envelope(request, body)
        if envelope["type"] in function.handles:
            type_ = envelope["type"]
        outcome = "done" if _process(function, envelope) else "repeated"
        return empty_response(204)
    except Problem as problem:
        if isinstance(problem, delivery_tokens.UnauthenticatedDelivery):
            outcome = "unauthenticated"
        elif isinstance(problem, DeliveryUnderWay):
            outcome = "under_way"
        elif problem.status < 500:
            outcome = "refused"
        raise
    finally:
        metrics.EVENT_OUTCOMES.inc(type_, outcome)


def _process(function: EventFunction, envelope: CloudEvent) -> bool:
    """Process an event; return False if it was already processed."""
    if request_id := str(envelope.get("requestid", "")):
        logs.request_id.set(request_id)
    event, event_id = _event(function, envelope), f"{envelope['source']} {envelope['id']}"
    with _claimed(function.name, event_id) as mark:
        if mark:
            _call(function, event=event, mark=mark)
        return mark is not None


def _call(function: EventFunction, **given: Any) -> None:
    function.handler(**{name: given[name] for name in function.takes})


def _envelope(request: Request, body: bytes) -> CloudEvent:
    """Return the CloudEvent in a request.

    Raises:
        MalformedRequest: the request is not a CloudEvent, or its data is not a JSON object.
    """
    try:
        envelope = from_http(CloudEvent, dict(request.headers.items()), body)
    except (
        cloudevents_exceptions.GenericException,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        RecursionError,
    ) as error:
        raise MalformedRequest("The request is not a CloudEvent (version 1.0) in binary or structured mode.") from error
    if fault := cloud_events.fault(envelope.get_attributes()):
        raise MalformedRequest(fault)
    identity = f"{envelope['source']}{envelope['id']}"
    if not (identity.isprintable() and len(identity) <= MAX_IDENTITY_LENGTH):
        raise MalformedRequest("The source or the id of the event is too long or not printable.")
    if not all(map(cloud_events.is_text, envelope.get_attributes().values())):
        raise MalformedRequest("An attribute of the event contains a character that is not allowed.")
    if not isinstance(envelope.data, dict):
        raise MalformedRequest("The data of the event is not a JSON object.")
    return envelope


def _event(function: EventFunction, envelope: CloudEvent) -> Event | ScheduleFired:
    """Return the data of an event.

    Raises:
        InvalidRequest: the function does not handle its type and version, or the data does not match it.
    """
    model = function.handles.get(envelope["type"])
    if model is None:
        raise InvalidRequest(f"{function.name} does not handle events of the type {envelope['type'][:100]}.")
    try:
        return model.model_validate(envelope.data)
    except ValidationError as error:
        # Not the values, which may be data that no event should contain.
        faults = [f"{'.'.join(map(str, fault['loc']))} ({fault['type']})" for fault in error.errors()[:5]]
        raise InvalidRequest(f"The data does not match the type {model.type}: {', '.join(faults)}.") from None


@contextmanager
def _claimed(function: str, event_id: str) -> Iterator[Mark | None]:
    """Claim an event for one delivery, and mark it as processed when the block succeeds.

    Yield a function that marks it earlier, or None if it was already processed.

    Raises:
        DeliveryUnderWay: another delivery of it is in progress; this one can be retried.
    """
    started = time.monotonic()
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
        yield None
        return
    if claimed_at is None:
        raise DeliveryUnderWay
    this = (*this, processed_event.c.claimed_at == claimed_at)  # not a claim that another delivery made since
    done_now = update(processed_event).where(*this).values(done_at=func.now())

    def mark(connection: Connection) -> None:
        if not connection.execute(done_now).rowcount:
            raise ServiceUnavailable  # another delivery has taken over an expired claim: only that one may count

    try:
        yield mark
    except BaseException:
        # A mark means that the commit succeeded and only its confirmation was lost.
        with contextlib.suppress(ServiceUnavailable), transaction() as connection:
            connection.execute(delete(processed_event).where(*this, processed_event.c.done_at.is_(None)))
        raise
    while True:  # wait out a short outage of the database, so that the provider is not called again
        try:
            with transaction() as connection:
                connection.execute(done_now)
            return
        except ServiceUnavailable:
            if time.monotonic() - started > CLAIM_LIFETIME.total_seconds():
                raise
            time.sleep(MARK_AGAIN_SECONDS)
