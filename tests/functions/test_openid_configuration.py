"""What a library finds that is given nothing but the issuer: OpenID Connect Discovery 1.0, 3 and 4."""

import json
import os
import subprocess
import sys
import urllib.request
from typing import Any

import jwt
import pytest

from shared.runtime import settings as settings_module
from shared.runtime.settings import settings
from tests.conftest import User, call, session_of
from tests.functions.test_jwks import HEAVY

PATH = "/.well-known/openid-configuration"
REQUIRED = {"issuer", "jwks_uri", "response_types_supported", "subject_types_supported"} | {
    "id_token_signing_alg_values_supported"
}
"""Of section 3; authorization_endpoint and token_endpoint would be too, if there were any."""


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def test_the_issuer_alone_leads_to_the_key_of_a_token(active_user: User) -> None:
    token = session_of(active_user)["access_token"]
    issuer = jwt.decode(token, options={"verify_signature": False})["iss"]
    found = fetch(issuer + PATH)
    assert found["issuer"] == issuer
    key = jwt.PyJWKClient(found["jwks_uri"]).get_signing_key_from_jwt(token)
    algorithms = found["id_token_signing_alg_values_supported"]
    assert jwt.decode(token, key, algorithms, audience="aegis", issuer=issuer)["sub"] == str(active_user.id)


def test_the_required_members_are_there() -> None:
    assert call("openid_configuration").json.keys() >= REQUIRED


def test_no_endpoint_is_named_that_does_not_exist() -> None:
    endpoints = {name for name in call("openid_configuration").json if name.endswith(("_endpoint", "_uri"))}
    assert endpoints == {"jwks_uri"}


def test_no_grant_is_promised_by_leaving_the_grants_out() -> None:
    """RFC 8414, 2: left out, they are authorization_code and implicit."""
    assert call("openid_configuration").json["grant_types_supported"] == []


def test_the_claims_are_those_of_a_token(active_user: User) -> None:
    claims = jwt.decode(session_of(active_user)["access_token"], options={"verify_signature": False})
    assert set(call("openid_configuration").json["claims_supported"]) == claims.keys()


@pytest.mark.parametrize("public_url", ["https://example.com/aegis", "https://example.com/aegis/"])
def test_an_issuer_with_a_path_keeps_it_and_has_no_slash_at_its_end(
    public_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBLIC_URL", public_url)
    settings_module.settings.cache_clear()
    found = call("openid_configuration").json
    monkeypatch.undo()
    settings_module.settings.cache_clear()
    assert found["issuer"] == "https://example.com/aegis"
    assert found["jwks_uri"] == "https://example.com/aegis/.well-known/jwks.json"


def test_it_may_be_cached_for_five_minutes() -> None:
    response = call("openid_configuration")
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["Cache-Control"] == "public, max-age=300"
    unchanged = call("openid_configuration", headers={"If-None-Match": response.headers["ETag"]})
    assert (unchanged.status_code, unchanged.data) == (304, b"")


def test_a_page_of_an_allowed_origin_may_read_it() -> None:
    origin = min(settings().cors_allowed_origins)
    response = call("openid_configuration", headers={"Origin": origin})
    assert response.headers["Access-Control-Allow-Origin"] == origin


def test_it_starts_and_answers_without_heavy_packages() -> None:
    program = (
        "import sys; from shared.framework.server import create_app;"
        f"answer = create_app('openid_configuration').test_client().get('{PATH}');"
        f"print(answer.status_code, sorted(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "200 []"
