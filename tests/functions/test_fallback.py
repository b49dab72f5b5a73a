"""Addresses and methods that no function has."""

import pytest

from tests.conftest import client


@pytest.mark.parametrize("path", ["/", "/nowhere", "/api/v1/users/", "/api/v1/users/me/", "/robots", "/%00", "/한국"])
def test_an_unknown_address_is_a_404(path: str) -> None:
    response = client("fallback").get("/unrouted" + path)
    assert (response.status_code, response.content_type) == (404, "application/problem+json")
    assert response.json["type"] == "urn:aegis:problem:not-found"  # type: ignore[index]


@pytest.mark.parametrize(("path", "allow"), [("/api/v1/users", "POST"), ("/api/v1/users/me", "GET, HEAD")])
def test_a_known_address_with_another_method_is_a_405_that_names_the_right_ones(path: str, allow: str) -> None:
    response = client("fallback").delete("/unrouted" + path)
    assert (response.status_code, response.headers["Allow"]) == (405, allow)
