"""`http_function`: turns a handler for one route into a function for functions-framework.

The decorator declares the method and path, who may call it and how often, and how it scales. The handler's parameters
declare what it needs:

    body: Model               the validated JSON body, a `RequestBody`
    query: Model              the validated query, a `QueryParameters`
    NAME_id: UUID             a parameter of the path, as in /users/{user_id}
    caller: Caller            the authenticated user; without one the answer is 401
    client: Client            the address and the device that the request comes from
    if_match: str | None      the header If-Match, for `require_match`
    cached: bytes | None      with `cached=`, a cache entry that is read in the same round trip as the session
    subjects: Mapping         the subjects of its limits, for `rate_limits.forgive`
    device_token: str | None  the header Device-Token, for `known_devices.recognize`
    request: flask.Request    the request as received

It returns a TypedDict (or JSON bytes from the cache), which becomes the body; a `Reply` to add headers; or None for a
response without a body. Every POST accepts an Idempotency-Key; see shared/framework/idempotency.py for what that means
for a handler's transactions.
"""

import functools
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints
from uuid import UUID

import functions_framework
from flask import Request, Response
from functions_framework import HTTPFunction

from shared.framework.registry import HTTP_FUNCTIONS, HttpFunction
from shared.framework.scaling import DATABASE, Scaling
from shared.http import rate_limits
from shared.http.clients import client_of
from shared.http.rate_limits import Count, address_subject, nearest
from shared.http.request import Reply, answer, empty_response, etag, json_response
from shared.identity import authentication
from shared.identity.access_tokens import MULTI_FACTOR, Caller
from shared.postgresql import own_writes
from shared.redis import cache
from shared.runtime import deadline, logs
from shared.runtime.problems import (
    FieldError,
    Forbidden,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    ReauthenticationRequired,
    ServiceUnavailable,
    Unauthenticated,
    UnsupportedContentEncoding,
    UnsupportedMediaType,
)
from shared.runtime.settings import Dependency

if TYPE_CHECKING:
    from pydantic import BaseModel

M = TypeVar("M", bound="BaseModel")

GIVEN = frozenset({"body", "query", "caller", "client", "if_match", "cached", "subjects", "device_token", "request"})
MAX_FAULTS = 20
RECENT_SECONDS = 600
JSON = "application/json"
MEDIA_TYPES = {"PATCH": ("application/merge-patch+json", JSON)}
PATH_PARAMETER = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
"""A UUID in upper or lower case (RFC 9562, 4)."""

PER_ADDRESS = {"address": "60/minute"}
"""The default of an operation that anyone can call."""
PER_ACCOUNT = {"address": "1200/minute", "account": "300/minute"}
"""The default of an operation that requires an access token."""


def http_function(
    method: str,
    path: str,
    *,
    status: int = 200,
    scaling: Scaling = DATABASE,
    role: Literal["admin"] | None = None,
    recent_login: bool = False,
    strongest_factor: bool = False,
    limits: Mapping[str, str] | None = None,
    uses: Collection[Dependency] = (),
    problems: Collection[type[Problem]] = (),
    cached: Callable[[Caller], str] | None = None,
    may_lag: bool = False,
) -> Callable[[Callable[..., Any]], HTTPFunction]:
    """Register a handler under its name.

    Args:
        method, path: the route; GET also answers HEAD.
        status: of a success.
        scaling: the class of load and the maximum number of pods.
        role: that the caller must have, in a session with a second factor.
        recent_login: whether the caller must have logged in within the last ten minutes.
        strongest_factor: whether the session must have passed the strongest factor of the account; implied by a role or
            a recent log-in.
        limits: how many requests are allowed per "address", "account" (of the caller), "email" (in the body), "mailbox"
            (the email as its provider compares it), "email+address" or "mailbox+address". If a known device sends its
            token, the limit per "device" replaces those with "email" or "mailbox".
        uses: the dependencies that must be configured, and that /health/ready reports, besides the implied ones: the
            cache for its limits, the gateway's key, those of access tokens, and for a POST those of stored responses.
        problems: the errors of this operation, for the documentation.
        cached: returns the cache key to read for the caller; the handler gets the entry as `cached`.
        may_lag: whether it may read data that is seconds old, except for the caller's writes
            (shared/postgresql/replica.py).
    """

    def decorate(handler: Callable[..., Any]) -> HTTPFunction:
        hints = get_type_hints(handler)
        takes = frozenset(hints) - {"return"}
        if unknown := takes - GIVEN - set(re.findall(r"\{(\w+)\}", path)):
            raise TypeError(f"{handler.__name__} takes {', '.join(sorted(unknown))}, which is not available")
        rate_limits.check(limits or {})
        needs: set[Dependency] = {"cache", "gateway"}
        if "caller" in takes:
            needs |= authentication.USES
        if method == "POST":
            needs |= {"database", "encryption"}
        if known := needs & set(uses):
            raise TypeError(f"{handler.__name__} uses {', '.join(sorted(known))} anyway: remove it from `uses`")
        needs |= set(uses)
        operation = HTTP_FUNCTIONS[handler.__name__] = HttpFunction(
            name=handler.__name__,
            method=method,
            path=path,
            status=status,
            handler=handler,
            takes=takes,
            body=hints.get("body"),
            query=hints.get("query"),
            returns=hints["return"],
            role=role,
            recent_login=recent_login,
            strongest_factor=bool(strongest_factor or role or recent_login),
            limits=(PER_ACCOUNT if "caller" in takes else PER_ADDRESS) if limits is None else limits,
            cached=cached,
            may_lag=may_lag,
            problems=tuple(problems),
            uses=frozenset(needs),
            scaling=scaling,
        )
        template = re.compile(path_pattern(path, named=True))

        @functions_framework.http
        @functools.wraps(handler)
        def serve(request: Request) -> Response:
            def perform(body: bytes, headers: dict[str, str]) -> Response:
                with deadline.in_time(), own_writes.noted():
                    return _perform(operation, template, request, body, headers)

            return answer(operation.name, path, request, perform)

        return serve

    return decorate


def path_pattern(path: str, *, named: bool = False) -> str:
    """Return the regular expression of a path template, as in routes or with its parameters as named groups."""
    literal = re.escape(path).replace(r"\{", "{").replace(r"\}", "}").replace(r"\-", "-")
    return re.sub(r"\{(\w+)\}", rf"(?P<\1>{PATH_PARAMETER})" if named else PATH_PARAMETER, literal)


def _perform(
    operation: HttpFunction, template: re.Pattern[str], request: Request, body: bytes, headers: dict[str, str]
) -> Response:
    """Check a request step by step and pass it to the handler. Any response, even an error, gets `headers`."""
    client = client_of(request)
    given: dict[str, Any] = {
        "request": request,
        "client": client,
        "if_match": request.headers.get("If-Match"),
        "device_token": request.headers.get("Device-Token"),
    }
    if operation.path != "/*":
        given |= _path_parameters(operation, template, request)

    caller: Caller | None = None
    refusal: Problem | None = None
    try:
        if operation.authenticated:
            caller = given["caller"] = authentication.caller_of(request.headers.get("Authorization", ""))
            logs.user_id.set(str(caller.user_id))
            _check_rights(operation, caller)
        given |= _parts(operation, request, body)
    except Problem as problem:
        refusal = problem  # raised below, once the limits and the session are checked

    subjects = given["subjects"] = {"address": address_subject(client.address)}
    if not refusal:
        subjects |= _subjects(operation, given)
    # A HEAD has the same limits as the GET, but is counted separately.
    counted_as = f"{operation.name}:head" if request.method == "HEAD" else operation.name
    count = Count(counted_as, operation.limits, subjects)
    keys = [authentication.state_key(caller.user_id, caller.session_id)] if caller else []
    if caller and operation.cached:
        keys.append(operation.cached(caller))
    if caller and operation.may_lag:
        keys.append(own_writes.key(caller.user_id))
    values, answer = cache.ask(keys, count.command)
    headers |= nearest(count.standings(answer))

    def perform() -> Response:
        result = operation.handler(**{name: given[name] for name in operation.takes})
        return _success(operation, request, result)

    key = request.headers.get("Idempotency-Key") if operation.keeps_answers else None
    try:
        if caller and not authentication.has_session(caller, values[0]):
            # The token of an ended session must not use up the account's limits.
            rate_limits.take_back(counted_as, operation.limits, subjects | {"address": ""})
            raise Unauthenticated
        if refusal:
            raise refusal
        given["cached"] = values[1] if operation.cached else None
        if caller and operation.method != "GET":
            own_writes.add(caller.user_id)
        # If Redis does not know the session, it does not know of recent writes either.
        own_writes.may_lag.set(operation.may_lag and values[0] is not None and values[-1] is None)
        authentication.takes_strongest_factor.set(operation.strongest_factor)
        if operation.method == "GET":
            _check_factor(caller)
        if key is None:
            return perform()
        # Imported only if needed.
        from shared.framework.idempotency import answer_once

        scope = f"{operation.name} {subjects.get('account', '')}"
        whole = request.full_path.encode() + b"\n" + body
        return answer_once(key, scope, whole, perform, before_replay=lambda: _check_factor(caller))
    except ServiceUnavailable:
        # Clients that retry until we are available again must not use up their limits.
        rate_limits.take_back(counted_as, operation.limits, subjects)
        raise


def _parts(operation: HttpFunction, request: Request, body: bytes) -> dict[str, Any]:
    """Return the validated query and body of a request."""
    parts: dict[str, Any] = {}
    if operation.query:
        parts["query"] = _validated_query(operation.query, request)
    if operation.body:
        if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnsupportedContentEncoding
        if request.mimetype not in MEDIA_TYPES.get(request.method, (JSON,)):
            raise UnsupportedMediaType
        parts["body"] = _validated(lambda model: model.model_validate_json(body), operation.body)
    return parts


def _subjects(operation: HttpFunction, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the subjects of a valid request's limits, besides its IP address: the account and the e-mail address.

    A known device replaces the e-mail address, so that others cannot use up the owner's limit.
    """
    subjects: dict[str, str] = {}
    if "caller" in given:
        subjects["account"] = str(given["caller"].user_id)
    if email := getattr(given.get("body"), "email", None):
        from shared.text.fields import canonical_email
        from shared.text.mailboxes import counted_mailbox

        address = canonical_email(email)  # otherwise each spelling of an address would have a separate limit
        if "device" in operation.limits and (token := given["device_token"]):
            # Imported only if needed.
            from shared.identity import known_devices

            if device := known_devices.recognize(token, address):
                return {"device": device}
        subjects["email"] = address
        subjects["mailbox"] = counted_mailbox(email)
    return subjects


def _path_parameters(operation: HttpFunction, template: re.Pattern[str], request: Request) -> dict[str, UUID]:
    matched = template.fullmatch(request.path)
    if not matched:
        raise NotFound
    if request.method != operation.method and (request.method, operation.method) != ("HEAD", "GET"):
        raise MethodNotAllowed(["GET", "HEAD"] if operation.method == "GET" else [operation.method])
    return {name: UUID(text) for name, text in matched.groupdict().items()}


def _check_rights(operation: HttpFunction, caller: Caller) -> None:
    if operation.role and operation.role not in caller.roles:
        raise Forbidden
    if operation.role and MULTI_FACTOR not in caller.amr:
        raise ReauthenticationRequired(
            "second-factor-missing", "This requires a session with a second factor. Set one up, then log in with it."
        )
    if operation.recent_login and time.time() - caller.authenticated_at > RECENT_SECONDS:
        raise ReauthenticationRequired("login-too-old", max_age=RECENT_SECONDS)


def _check_factor(caller: Caller | None) -> None:
    """Require the strongest factor for a read or a replay; `changes.change` requires it for a change."""
    if caller and authentication.takes_strongest_factor.get():
        # Imported only if needed: reading a cached profile does not use the database.
        from shared.identity import factors
        from shared.postgresql.transactions import transaction

        with transaction() as connection:
            factors.require_strongest(connection, caller)


def _success(operation: HttpFunction, request: Request, result: Any) -> Response:
    reply = result if isinstance(result, Reply) else Reply(result)
    if reply.body is None:
        response = empty_response(operation.status)
    else:
        response = json_response(reply.body, operation.status)
        if operation.method in ("GET", "PATCH"):
            response.headers["ETag"] = etag(response.get_data())
    response.headers.update(reply.headers)
    if operation.method == "GET" and (request.if_none_match or request.if_modified_since):
        response.make_conditional(request)
    return response


def _validated_query(model: type[M], request: Request) -> M:
    repeated = [name for name, values in request.args.lists() if len(values) > 1]
    if repeated:
        raise InvalidRequest(
            errors=[_fault((name,), "repeated", "It is given more than once.") for name in repeated[:MAX_FAULTS]]
        )
    return _validated(lambda model: model.model_validate(request.args.to_dict()), model)


def _validated(validate: Callable[[type[M]], M], model: type[M]) -> M:
    from pydantic import ValidationError

    try:
        return validate(model)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        if any(fault["type"] == "json_invalid" for fault in faults):
            raise MalformedRequest from None
        raise InvalidRequest(
            errors=[_fault(fault["loc"], fault["type"], fault["msg"]) for fault in faults[:MAX_FAULTS]]
        ) from None


def _fault(location: tuple[int | str, ...], code: str, detail: str) -> FieldError:
    return FieldError(pointer=json_pointer(location), code=code, detail=detail)


def json_pointer(location: tuple[int | str, ...]) -> str:
    """Return the JSON pointer (RFC 6901) of a place in a document: ('name',) is '/name', () is the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)
