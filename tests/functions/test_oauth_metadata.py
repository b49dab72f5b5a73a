"""The same document, where clients of OAuth 2.0 look for it (RFC 8414)."""

import urllib.error
import urllib.request

import pytest

from shared.runtime.settings import settings
from tests.conftest import call
from tests.functions.test_openid_configuration import fetch

PATH = "/.well-known/oauth-authorization-server"


def test_it_is_the_document_of_openid_connect() -> None:
    """RFC 8414, 3.1: of an issuer without a path."""
    assert fetch(settings().public_url + PATH) == call("openid_configuration").json


def test_it_may_be_cached_for_five_minutes() -> None:
    response = call("oauth_metadata")
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["Cache-Control"] == "public, max-age=300"
    unchanged = call("oauth_metadata", headers={"If-None-Match": response.headers["ETag"]})
    assert (unchanged.status_code, unchanged.data) == (304, b"")


def test_another_method_is_a_405() -> None:
    request = urllib.request.Request(settings().public_url + PATH, b"{}", {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    assert (raised.value.code, raised.value.headers["Allow"]) == (405, "GET, HEAD")
