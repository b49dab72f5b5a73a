"""`http_function`: turns a handler for one route into a function for functions-framework.

The decorator states method, path and what the handler uses. The handler's parameters say what it takes:

    body: Model               the validated JSON body, a `RequestBody`
    caller: Caller            the authenticated user; without one the answer is 401
    cached: bytes | None      with `cached=`, an entry of the cache read in the same round trip as the session
    request: flask.Request    the request as it came, for the function that answers at any path ("/*")

It returns a TypedDict (or JSON bytes from the cache), which becomes the body, or None for an answer without one.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

import functions_framework
from flask import Request, Response
from functions_framework import HTTPFunction

from shared import authentication
from shared.problems import InvalidRequest, MalformedRequest, MethodNotAllowed, NotFound, Problem, UnsupportedMediaType
from shared.registry import HTTP_FUNCTIONS, HttpFunction
from shared.request import answer, empty_response, json_response
from shared.settings import Dependency

if TYPE_CHECKING:
    from shared.fields import RequestBody


MAX_FAULTS = 20


def http_function(
    method: str,
    path: str,
    *,
    status: int = 200,
    uses: Collection[Dependency] = (),
    problems: Collection[type[Problem]] = (),
    cached: Callable[[authentication.Caller], str] | None = None,
) -> Callable[[Callable[..., Any]], HTTPFunction]:
    """Registers a handler under its own name.

    Args:
        method, path: the route; it answers HEAD where it answers GET.
        status: of a success.
        uses: the dependencies that must be set, and that /health/ready reports.
        problems: the errors that are the operation's own, for the documentation.
        cached: the cache key to read for this caller, handed to the handler as `cached`.
    """

    def decorate(handler: Callable[..., Any]) -> HTTPFunction:
        hints = get_type_hints(handler)
        authenticated = "caller" in hints
        operation = HTTP_FUNCTIONS[handler.__name__] = HttpFunction(
            name=handler.__name__,
            method=method,
            path=path,
            status=status,
            handler=handler,
            body=hints.get("body"),
            returns=hints["return"],
            authenticated=authenticated,
            cached=cached,
            problems=tuple(problems),
            uses=frozenset(uses) | (authentication.USES if authenticated else frozenset()),
        )

        @functions_framework.http
        @functools.wraps(handler)
        def serve(request: Request) -> Response:
            return answer(operation.name, path, request, lambda body: _perform(operation, request, body))

        return serve

    return decorate


def _perform(operation: HttpFunction, request: Request, body: bytes) -> Response:
    arguments: dict[str, Any] = {}
    if operation.path == "/*":
        arguments["request"] = request
    elif request.path != operation.path:
        raise NotFound
    elif request.method != operation.method and (request.method, operation.method) != ("HEAD", "GET"):
        raise MethodNotAllowed(["GET", "HEAD"] if operation.method == "GET" else [operation.method])

    if operation.authenticated:
        caller, cached = authentication.authenticate(request.headers.get("Authorization", ""), operation.cached)
        arguments["caller"] = caller
        if operation.cached:
            arguments["cached"] = cached
    if operation.body:
        if request.mimetype != "application/json":
            raise UnsupportedMediaType
        arguments["body"] = _validated(operation.body, body)

    result: Mapping[str, Any] | bytes | None = operation.handler(**arguments)
    return empty_response(operation.status) if result is None else json_response(result, operation.status)


def _validated(model: "type[RequestBody]", body: bytes) -> "RequestBody":
    from pydantic import ValidationError

    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        if any(fault["type"] == "json_invalid" for fault in faults):
            raise MalformedRequest from None
        raise InvalidRequest(
            errors=[{"pointer": json_pointer(fault["loc"]), "detail": fault["msg"]} for fault in faults[:MAX_FAULTS]]
        ) from None


def json_pointer(location: tuple[int | str, ...]) -> str:
    """The JSON pointer (RFC 6901) of a place in a document: ('name',) is '/name', () the whole."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)
