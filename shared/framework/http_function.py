"""`http_function`: turns a handler for one route into a function for functions-framework.

The decorator states what a reader must know: method, path, who may call, how often, how it scales. The handler's
parameters say what it takes:

    body: Model               the validated JSON body, a `RequestBody`
    query: Model              the validated query, a `QueryParameters`
    NAME_id: UUID             a parameter of the path, as in /users/{user_id}
    caller: Caller            the authenticated user; without one the answer is 401
    client: Client            the address and the device that the request comes from
    if_match: str | None      the header If-Match, for `require_match`
    cached: bytes | None      with `cached=`, an entry of the cache read in the same round trip as the session
    subjects: Mapping         what its limits are counted for, for `rate_limits.forgive`
    device_token: str | None  the header Device-Token, for `known_devices.recognize`
    request: flask.Request    the request as it came, for the function that answers at any path ("/*")

It returns a TypedDict (or JSON bytes from the cache), which becomes the body; a `Reply` where headers go with it; or
None for an answer without one. Every POST takes an Idempotency-Key; see shared/framework/idempotency.py for what
that means for a handler's transactions.
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
"""A UUID is read in either case (RFC 9562, 4)."""

PER_ADDRESS = {"address": "60/minute"}
"""Of an operation that anyone may call, where it states nothing else."""
PER_ACCOUNT = {"address": "1200/minute", "account": "300/minute"}
"""Of an operation that takes an access token, where it states nothing else."""


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
    """Registers a handler under its own name.

    Args:
        method, path: the route; it answers HEAD where it answers GET.
        status: of a success.
        scaling: the class of load and the most pods.
        role: that the caller must have, in a session with a second factor.
        recent_login: whether the caller must have logged in within the last ten minutes.
        strongest_factor: whether their session must have passed the strongest factor that the account has; so in any
            case with a role or a recent log-in.
        limits: how many requests for each "address", "account" (the caller's), "email" (the body's), "mailbox" (the
            email without what its provider overlooks), "email+address", "mailbox+address". One for each "device" counts
            in place of those of "email" and "mailbox" where a known device sends its token.
        uses: the dependencies that must be set, and that /health/ready reports, besides those that it has in any
            case: the cache for its limits, the gateway's key, what tokens take, and of a POST what keeping its answers
            takes.
        problems: the errors that are the operation's own, for the documentation.
        cached: the cache key to read for this caller, handed to the handler as `cached`.
        may_lag: whether it may read data seconds old, but for the caller's own writes (shared/postgresql/replica.py).
    """

    def decorate(handler: Callable[..., Any]) -> HTTPFunction:
        hints = get_type_hints(handler)
        takes = frozenset(hints) - {"return"}
        if unknown := takes - GIVEN - set(re.findall(r"\{(\w+)\}", path)):
            raise TypeError(f"{handler.__name__} takes {', '.join(sorted(unknown))}, which nobody gives it")
        rate_limits.check(limits or {})
        needs: set[Dependency] = {"cache", "gateway"}
        if "caller" in takes:
            needs |= authentication.USES
        if method == "POST":
            needs |= {"database", "encryption"}
        if known := needs & set(uses):
            raise TypeError(f"{handler.__name__} uses {', '.join(sorted(known))} in any case: say what it uses besides")
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
    """The regular expression of a path template: as routes write it, or with its parameters as named groups."""
    literal = re.escape(path).replace(r"\{", "{").replace(r"\}", "}").replace(r"\-", "-")
    return re.sub(r"\{(\w+)\}", rf"(?P<\1>{PATH_PARAMETER})" if named else PATH_PARAMETER, literal)


def _perform(
    operation: HttpFunction, template: re.Pattern[str], request: Request, body: bytes, headers: dict[str, str]
) -> Response:
    """Checks a request step by step and hands it to the handler. `headers` go with the answer, whatever it is."""
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
        refusal = problem  # for who is within the limits, and has a session

    subjects = given["subjects"] = {"address": address_subject(client.address)}
    if not refusal:
        subjects |= _subjects(operation, given)
    # A HEAD has the limits of the GET, but uses none of its requests up.
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
            # Whoever holds the token of a session that has ended uses nothing up that is the account's.
            rate_limits.take_back(counted_as, operation.limits, subjects | {"address": ""})
            raise Unauthenticated
        if refusal:
            raise refusal
        given["cached"] = values[1] if operation.cached else None
        if caller and operation.method != "GET":
            own_writes.add(caller.user_id)
        # Where Redis tells nothing of the session, it tells nothing of what was written, either.
        own_writes.may_lag.set(operation.may_lag and values[0] is not None and values[-1] is None)
        authentication.takes_strongest_factor.set(operation.strongest_factor)
        if operation.method == "GET":
            _check_factor(caller)
        if key is None:
            return perform()
        # Imported for those who ask for it.
        from shared.framework.idempotency import answer_once

        scope = f"{operation.name} {subjects.get('account', '')}"
        whole = request.full_path.encode() + b"\n" + body
        return answer_once(key, scope, whole, perform, before_replay=lambda: _check_factor(caller))
    except ServiceUnavailable:
        # Who does as told, and comes again until we are back, has not used up what is allowed to them.
        rate_limits.take_back(counted_as, operation.limits, subjects)
        raise


def _parts(operation: HttpFunction, request: Request, body: bytes) -> dict[str, Any]:
    """The query and the body that an operation takes, validated."""
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
    """What the limits of a valid request count, besides its IP address: the caller's account and the e-mail address.

    A known device counts in place of the e-mail address, so requests of strangers do not use up the owner's limit.
    """
    subjects: dict[str, str] = {}
    if "caller" in given:
        subjects["account"] = str(given["caller"].user_id)
    if email := getattr(given.get("body"), "email", None):
        from shared.text.fields import canonical_email
        from shared.text.mailboxes import counted_mailbox

        address = canonical_email(email)  # or each other spelling of a mailbox had a limit of its own
        if "device" in operation.limits and (token := given["device_token"]):
            # Imported for those who have one.
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
            "second-factor-missing", "This takes a session with a second factor: enroll one, then log in with it."
        )
    if operation.recent_login and time.time() - caller.authenticated_at > RECENT_SECONDS:
        raise ReauthenticationRequired("login-too-old", max_age=RECENT_SECONDS)


def _check_factor(caller: Caller | None) -> None:
    """Asks for the strongest factor where nothing is locked; `changes.change` asks wherever something is changed."""
    if caller and authentication.takes_strongest_factor.get():
        # Imported when it is asked: a read of one's own profile never meets the database.
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
    """The JSON pointer (RFC 6901) of a place in a document: ('name',) is '/name', () the whole."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)
