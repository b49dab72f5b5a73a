"""One request from arrival to response: its id, size limits, errors, log line and metrics."""

import contextlib
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flask import Request, Response
from werkzeug.exceptions import RequestEntityTooLarge

from shared.http import cors
from shared.runtime import deadline, logs, metrics
from shared.runtime.problems import BodyTooLarge, InternalError, MalformedRequest, PreconditionFailed, Problem

MAX_BODY_BYTES = 64 * 1024
DISCARDED_BYTES = 16 * 1024 * 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What a handler returns to add headers to its response."""

    body: T
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(
    function: str,
    endpoint: str,
    request: Request,
    work: Callable[[bytes, dict[str, str]], Response],
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Response:
    """Answer one request with `work`, which may raise any Problem.

    `work` takes the body and a dictionary to fill with headers. Any response, even an error, gets them.

    Args:
        function: the name of the function, for the log and the metrics.
        endpoint: the route, for the same. Never the path of the request, which may contain anything.
    """
    started = time.perf_counter()
    request_id = _request_id(request.headers.get("X-Request-Id", ""))
    logs.request_id.set(request_id)
    logs.user_id.set("")
    # One more than allowed, because a chunked body is cut off there without an error.
    request.max_content_length = max_body_bytes + 1
    headers: dict[str, str] = {}
    try:
        body = _body(request, max_body_bytes)
        deadline.refuse_late()
        response = work(body, headers)
    except RequestEntityTooLarge:
        response = ProblemResponse(BodyTooLarge(f"The request body exceeds the limit of {max_body_bytes // 1024} KiB."))
        # functions-framework reads the rest of the request into memory unless the response is streamed.
        response.response = iter([response.get_data()])
    except Problem as problem:
        response = ProblemResponse(problem)
    except Exception:
        log.exception("unexpected error")
        response = ProblemResponse(InternalError())
    headers |= {**SECURITY_HEADERS, **cors.headers(request), "X-Request-Id": request_id}
    # Not with setdefault, which compares each header with all others.
    present = {name.lower() for name, _ in response.headers}
    response.headers.extend((name, value) for name, value in headers.items() if name.lower() not in present)

    seconds = time.perf_counter() - started
    method = request.method if request.method in METHODS else "OTHER"
    user_id = logs.user_id.get()
    refusal = response.problem if isinstance(response, ProblemResponse) else ""

    @response.call_on_close
    def record() -> None:
        logs.request_id.set(request_id)
        logs.user_id.set(user_id)
        metrics.count_request(function, method, endpoint, response.status_code, seconds)
        if "Idempotency-Replayed" not in response.headers:
            metrics.count_login(function, refusal)
        log.info(
            "answered",
            extra={
                "function": function,
                "method": method,
                "endpoint": endpoint,
                "status": response.status_code,
                "duration_ms": round(seconds * 1000, 1),
                **({"problem": refusal} if refusal else {}),
            },
        )

    return response


SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""OWASP REST Security Cheat Sheet, "Security Headers". A handler can allow caching of public documents."""


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_bytes(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON, always the same bytes for the same body."""
    return _encoder.encode(body).encode()


def etag(representation: bytes) -> str:
    """Return the strong validator of a representation (RFC 9110, 8.8.3)."""
    return f'"{hashlib.sha256(representation).hexdigest()[:32]}"'


def require_match(if_match: str | None, current: str) -> None:
    """Raise PreconditionFailed if If-Match is given without the current ETag.

    The comparison is strong, so a weak tag never matches (RFC 9110, 13.1.1 and 8.8.3.2).
    """
    if if_match is not None and not {"*", current} & {part.strip() for part in if_match.split(",")}:
        raise PreconditionFailed


def json_response(body: Mapping[str, Any] | bytes, status: int) -> Response:
    """Return a JSON response; bytes are sent as they are."""
    content = body if isinstance(body, bytes) else json_bytes(body)
    return Response(content, status, content_type="application/json")


def _body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request.

    Raises:
        RequestEntityTooLarge
        RequestTimeout: it does not arrive before the deadline of shared/framework/server.py.
        MalformedRequest: it is cut off or malformed.
    """
    if not request.content_length and "Transfer-Encoding" not in request.headers:
        return b""
    try:
        if len(body := request.get_data()) > max_bytes:
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        _discard_body(request)
        raise
    except Problem:
        raise
    except Exception as error:
        raise MalformedRequest("The body did not arrive in full.") from error
    return body


def _discard_body(request: Request) -> None:
    """Read and discard a body that is too large: to a proxy that is still sending, an early response is an error."""
    read = request.environ["wsgi.input"].read
    with contextlib.suppress(Exception):  # it stays too large, however reading it ends
        for _ in range(DISCARDED_BYTES // MAX_BODY_BYTES):
            if not read(MAX_BODY_BYTES):
                break


def empty_response(status: int) -> Response:
    """Return a response without a body, and so without a content type."""
    response = Response(status=status)
    del response.headers["Content-Type"]
    return response


class ProblemResponse(Response):
    """A response that describes a problem (RFC 9457)."""

    def __init__(self, problem: Problem) -> None:
        """Include the id of the current request."""
        content = json_bytes(problem.body(logs.request_id.get()))
        super().__init__(content, problem.status, content_type="application/problem+json")
        self.headers.extend(problem.headers)
        self.problem = type(problem).__name__


def _request_id(given: str) -> str:
    """Return the caller's id if it is safe in a log line and a header, otherwise a new one."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(uuid.uuid4())
