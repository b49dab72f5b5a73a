"""Addresses and methods that no function has."""

from collections.abc import Iterator

import pytest

from shared.runtime.settings import settings
from tests.conftest import client


@pytest.mark.parametrize("path", ["/", "/nowhere", "/api/v1/users/", "/api/v1/users/me/", "/robots", "/%00", "/한국"])
def test_an_unknown_address_is_a_404(path: str) -> None:
    response = client("fallback").get("/unrouted" + path)
    assert (response.status_code, response.content_type) == (404, "application/problem+json")
    assert response.json["type"] == "urn:aegis:problem:not-found"  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "allow"), [("/api/v1/users", "GET, HEAD, POST"), ("/api/v1/users/me", "GET, HEAD, PATCH")]
)
def test_a_known_address_with_another_method_is_a_405_that_names_the_right_ones(path: str, allow: str) -> None:
    response = client("fallback").delete("/unrouted" + path)
    assert (response.status_code, response.headers["Allow"]) == (405, allow)


@pytest.fixture
def app_origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The origin of a front end that may call the API."""
    monkeypatch.setenv("CORS_ALLOWED_ORIGINS", "https://app.example.com, https://admin.example.com")
    settings.cache_clear()
    yield "https://app.example.com"
    monkeypatch.undo()
    settings.cache_clear()


def preflight(path: str, origin: str) -> dict[str, str]:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    response = client("fallback").options("/unrouted" + path, headers=headers)
    assert response.status_code == 204
    return dict(response.headers)


def test_a_browser_may_call_from_a_named_origin(app_origin: str) -> None:
    granted = preflight("/api/v1/users/login", app_origin)
    assert granted["Access-Control-Allow-Origin"] == app_origin
    assert "Content-Type" in granted["Access-Control-Allow-Headers"]
    assert "POST" in granted["Access-Control-Allow-Methods"]
    answer = client("login").post("/api/v1/users/login", json={}, headers={"Origin": app_origin})
    assert answer.headers["Access-Control-Allow-Origin"] == app_origin
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "header",
    ["Authorization", "Content-Type", "Device-Token", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-Id"],
)
def test_a_page_may_send_every_header_that_the_api_reads(app_origin: str, header: str) -> None:
    assert header in preflight("/api/v1/users/login", app_origin)["Access-Control-Allow-Headers"].split(", ")


@pytest.mark.parametrize(
    "header",
    [
        *("ETag", "Idempotency-Replayed", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After"),
        *("WWW-Authenticate", "X-Request-Id"),
    ],
)
def test_a_page_may_read_every_header_that_the_api_sends(app_origin: str, header: str) -> None:
    answer = client("login").post("/api/v1/users/login", json={}, headers={"Origin": app_origin})
    assert header in answer.headers["Access-Control-Expose-Headers"].split(", ")


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "https://app.example.com.evil.org", ""])
def test_a_browser_may_not_call_from_elsewhere(app_origin: str, origin: str) -> None:
    assert "Access-Control-Allow-Origin" not in preflight("/api/v1/users/login", origin)
    answer = client("login").post("/api/v1/users/login", json={}, headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_by_default_no_origin_is_named() -> None:
    assert "Access-Control-Allow-Origin" not in preflight("/api/v1/users/login", "https://app.example.com")


def test_a_preflight_for_an_unknown_address_is_a_404(app_origin: str) -> None:
    headers = {"Origin": app_origin, "Access-Control-Request-Method": "POST"}
    assert client("fallback").options("/unrouted/nowhere", headers=headers).status_code == 404
