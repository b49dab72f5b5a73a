"""`event_function`: turns a handler for some types of events into a function for functions-framework.

The handler's parameters say what it takes:

    event: Event            the validated data of the event
    envelope: CloudEvent    the event as it came, for its attributes
    connection: Connection  the transaction in which the event is marked as processed: what the handler writes in it
                            happens exactly once
    mark: Mark              marks the event as processed in a transaction of the handler's own, for one that asks a
                            provider before it writes

It serves CloudEvents over HTTP in either content mode. It registers as an HTTP function, because
functions-framework's own CloudEvent mode hands malformed JSON to the handler as bytes and answers 500 to a
structured event that is no object.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
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
from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared.events import cloud_events, delivery_tokens
from shared.events.schedules import ScheduleFired
from shared.events.types import Event
from shared.framework.registry import EVENT_FUNCTIONS, EventFunction
from shared.framework.scaling import EVENT, SCHEDULE, Delivery, Scaling
from shared.http.request import MAX_BODY_BYTES, answer, empty_response
from shared.postgresql.pool import prepared
from shared.postgresql.tables import processed_event
from shared.postgresql.transactions import transaction
from shared.runtime import logs, metrics
from shared.runtime.problems import InvalidRequest, MalformedRequest, MethodNotAllowed, Problem, ServiceUnavailable
from shared.runtime.resource_names import resource_name
from shared.runtime.settings import Dependency

GIVEN = frozenset({"event", "envelope", "connection", "mark"})
GIVEN_UNREAD = frozenset({"headers", "body"})
MAX_UNREAD_BYTES = 1024 * 1024
"""As much as Kafka takes for a record, unless it is told otherwise."""
MAX_IDENTITY_LENGTH = 512
DELIVERY = Delivery()
"""Of a function with a Trigger, where it states nothing else."""
CLAIM_LIFETIME = timedelta(seconds=2 * DELIVERY.timeout_seconds)
"""After so long a delivery that neither succeeded nor failed is taken for dead.

Twice what a Trigger gives a delivery, and more than the database and a provider together can take of it. The Triggers'
retries go on for minutes after that.
"""
MARK_AGAIN_SECONDS = 1.0

Mark = Callable[[Connection], None]


class DeliveryUnderWay(Problem):
    """A 409, which brokers and sources of Knative send again as they do a 503; but nothing of ours is at fault."""

    status = 409
    title = "Another delivery of this event is under way"
    detail = "Deliver it again later: it is then either processed, or free to be."


class Envelope(CloudEvent):
    """An event as it came: the SDK gives one that has no time the time of now."""

    def __init__(self, attributes: Mapping[str, str], data: Any = None) -> None:
        super().__init__(attributes, data)
        if "time" not in attributes:
            del self["time"]


def event_function(
    *events: type[Event] | type[ScheduleFired],
    uses: Collection[Dependency] = (),
    scaling: Scaling | None = None,
    delivery: Delivery = DELIVERY,
    schedule: str = "",
) -> Callable[[Callable[..., None]], HTTPFunction]:
    """Registers a handler under its own name. Each event takes effect once, however often it is delivered.

    A delivery needs a token (shared/events/delivery_tokens.py). An event is known by its source and id.

    What the handler does with `connection` is done in the transaction that also marks the event as processed. Any
    other handler has its delivery claimed first, and marked when it returns. When it raises, the claim is given back
    and the next delivery tries again.

    So one thing can happen twice, and only this: what a provider was asked for, when the process dies, is frozen for
    longer than a claim lives, or has no database for as long, after the provider took the request and before the mark;
    or when the provider's answer never arrived, which looks like a request that it never took.

    Args:
        events: the events that the handler takes; `ScheduleFired` for a function that runs at fixed times. None for a
            function that takes whatever it is sent, as `headers` and `body`, and counts it once by itself.
        uses: the dependencies that must be set, and that /health/ready reports.
        scaling: the class of load and the most pods; by default `EVENT`, or `SCHEDULE` with a schedule.
        delivery: how often and how long its Trigger tries each event.
        schedule: when `ScheduleFired` comes: the five fields of a cron line, in UTC.
    """

    def decorate(handler: Callable[..., None]) -> HTTPFunction:
        takes = frozenset(get_type_hints(handler)) - {"return"}
        if unknown := takes - (GIVEN if events else GIVEN_UNREAD):
            raise TypeError(f"{handler.__name__} takes {', '.join(sorted(unknown))}, which nobody gives it")
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
    """Lets an event take effect; False when it has already."""
    if request_id := str(envelope.get("requestid", "")):
        logs.request_id.set(request_id)
    event, event_id = _event(function, envelope), f"{envelope['source']} {envelope['id']}"
    if "connection" in function.takes:
        with transaction() as connection:
            is_new = _is_first(connection, function.name, event_id)
            if is_new:
                _call(function, event=event, envelope=envelope, connection=connection)
            return is_new
    with _claimed(function.name, event_id) as mark:
        if mark:
            _call(function, event=event, envelope=envelope, mark=mark)
        return mark is not None


def _call(function: EventFunction, **given: Any) -> None:
    function.handler(**{name: given[name] for name in function.takes})


def _envelope(request: Request, body: bytes) -> CloudEvent:
    """The CloudEvent of a request.

    Raises:
        MalformedRequest: it is none, or its data is not a JSON object.
    """
    try:
        envelope = from_http(Envelope, dict(request.headers.items()), body)
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
        raise MalformedRequest("An attribute of the event holds a character that no text may hold.")
    if not isinstance(envelope.data, dict):
        raise MalformedRequest("The data of the event is not a JSON object.")
    return envelope


def _event(function: EventFunction, envelope: CloudEvent) -> Event | ScheduleFired:
    """The data of an event.

    Raises:
        InvalidRequest: the function does not take its type and version, or the data is not of that.
    """
    model = function.handles.get(envelope["type"])
    if model is None:
        raise InvalidRequest(f"{function.name} does not take events of the type {envelope['type'][:100]}.")
    try:
        return model.model_validate(envelope.data)
    except ValidationError as error:
        # Where and what kind, not the value: it may be what no event should hold.
        faults = [f"{'.'.join(map(str, fault['loc']))} ({fault['type']})" for fault in error.errors()[:5]]
        raise InvalidRequest(f"The data is not that of a {model.type}: {', '.join(faults)}.") from None


def _is_first(connection: Connection, function: str, event_id: str) -> bool:
    """Marks an event as processed. A delivery of it at the same time waits here for the first to commit or fail."""
    return connection.scalar(_FIRST, {"by": function, "of_event": event_id}) is not None


# Made once, as to compose a statement takes longer than to execute it.
_FIRST = prepared(
    insert(processed_event)
    .values(function=bindparam("by"), event_id=bindparam("of_event"), done_at=func.now())
    .on_conflict_do_update(
        index_elements=["function", "event_id"],
        set_={"done_at": func.now()},
        where=processed_event.c.done_at.is_(None),  # claimed by the function as it was before
    )
    .returning(processed_event.c.done_at)
)


@contextmanager
def _claimed(function: str, event_id: str) -> Iterator[Mark | None]:
    """Claims an event for one delivery, and marks it as processed when the block has succeeded.

    Gives what marks it earlier; None when it is processed already.

    Raises:
        DeliveryUnderWay: another delivery of it is; this one may come again.
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
            raise ServiceUnavailable  # it took so long that another delivery took over: only that one may count

    try:
        yield mark
    except BaseException:
        # Unless it is marked: then the commit came through, and only word of it was lost.
        with contextlib.suppress(ServiceUnavailable), transaction() as connection:
            connection.execute(delete(processed_event).where(*this, processed_event.c.done_at.is_(None)))
        raise
    while True:  # what was sent would be sent again: so a database that is away for a moment is waited for
        try:
            with transaction() as connection:
                connection.execute(done_now)
            return
        except ServiceUnavailable:
            if time.monotonic() - started > CLAIM_LIFETIME.total_seconds():
                raise
            time.sleep(MARK_AGAIN_SECONDS)
