"""One request from arrival to answer: its id, its bounds, its errors, its log line, its count."""

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
    """What a handler returns when its answer has headers of its own."""

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
    """Answers one request by `work`, which may raise any Problem.

    `work` takes the body, and a dictionary of headers to fill: they are on the answer whatever comes of it.

    Args:
        function: the name of the function, for the log and the metrics.
        endpoint: the route, for the same; never the path of the request, which may hold anything.
    """
    started = time.perf_counter()
    request_id = _request_id(request.headers.get("X-Request-Id", ""))
    logs.request_id.set(request_id)
    logs.user_id.set("")
    # One more than allowed: a chunked body is cut off there, without an error.
    request.max_content_length = max_body_bytes + 1
    headers: dict[str, str] = {}
    try:
        body = _body(request, max_body_bytes)
        deadline.refuse_late()
        response = work(body, headers)
    except RequestEntityTooLarge:
        response = ProblemResponse(BodyTooLarge(f"A body may have {max_body_bytes // 1024} KiB."))
        # functions-framework reads the rest of the request into memory unless the answer is streamed.
        response.response = iter([response.get_data()])
    except Problem as problem:
        response = ProblemResponse(problem)
    except Exception:
        log.exception("unexpected error")
        response = ProblemResponse(InternalError())
    headers |= {**SECURITY_HEADERS, **cors.headers(request), "X-Request-Id": request_id}
    # Not by setdefault, which compares each with all that there are.
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
"""OWASP REST Security Cheat Sheet, "Security Headers". A handler may allow the caching of public documents."""


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_bytes(body: Mapping[str, Any]) -> bytes:
    """The JSON document of a body, always the same for the same body."""
    return _encoder.encode(body).encode()


def etag(representation: bytes) -> str:
    """The strong validator of a representation (RFC 9110, 8.8.3)."""
    return f'"{hashlib.sha256(representation).hexdigest()[:32]}"'


def require_match(if_match: str | None, current: str) -> None:
    """Raises PreconditionFailed when a caller's If-Match names other ETags than the current one.

    The comparison is strong, so a weak tag never matches (RFC 9110, 13.1.1 and 8.8.3.2).
    """
    if if_match is not None and not {"*", current} & {part.strip() for part in if_match.split(",")}:
        raise PreconditionFailed


def json_response(body: Mapping[str, Any] | bytes, status: int) -> Response:
    """A JSON answer; bytes are sent as they are."""
    content = body if isinstance(body, bytes) else json_bytes(body)
    return Response(content, status, content_type="application/json")


def _body(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        RequestEntityTooLarge
        RequestTimeout: it does not arrive in time, by the deadline of shared/framework/server.py.
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
    """Reads on past a body that is too large: a proxy that is still sending would take an early answer for a fault."""
    read = request.environ["wsgi.input"].read
    with contextlib.suppress(Exception):  # it is too large, however the rest of it ends
        for _ in range(DISCARDED_BYTES // MAX_BODY_BYTES):
            if not read(MAX_BODY_BYTES):
                break


def empty_response(status: int) -> Response:
    """An answer without a body, and so without a content type."""
    response = Response(status=status)
    del response.headers["Content-Type"]
    return response


class ProblemResponse(Response):
    """An answer that tells of a problem (RFC 9457)."""

    def __init__(self, problem: Problem) -> None:
        """With the id of the request that is being answered."""
        content = json_bytes(problem.body(logs.request_id.get()))
        super().__init__(content, problem.status, content_type="application/problem+json")
        self.headers.extend(problem.headers)
        self.problem = type(problem).__name__


def _request_id(given: str) -> str:
    """The caller's id where it is harmless in a log line and a header, else a new one."""
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(uuid.uuid4())
