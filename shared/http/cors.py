"""Cross-origin requests from browsers (Fetch standard, CORS protocol), for the origins in the settings."""

from flask import Request

from shared.runtime.settings import settings

MAX_AGE_SECONDS = 600
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = "Authorization, Content-Type, Device-Token, Idempotency-Key, If-Match, If-None-Match, X-Request-Id"
RESPONSE_HEADERS = (
    "ETag, Idempotency-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, "
    "X-Request-Id"
)


def is_preflight(request: Request) -> bool:
    """Return whether a browser asks if a page of another origin may send a request."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def headers(request: Request) -> dict[str, str]:
    """Return the headers that let the requesting page read the response; for other origins, none that allow it."""
    allowed = settings().cors_allowed_origins
    if not allowed:
        return {}
    origin = request.headers.get("Origin", "")
    if origin not in allowed:
        return {"Vary": "Origin"}
    granted = {"Vary": "Origin", "Access-Control-Allow-Origin": origin}
    if is_preflight(request):
        return granted | {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
        }
    return granted | {"Access-Control-Expose-Headers": RESPONSE_HEADERS}
