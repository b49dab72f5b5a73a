"""The public keys of access tokens."""

import json
import os
import subprocess
import sys

import jwt
import pytest

from knative.keys import new_signing_keys
from shared.runtime import settings as settings_module
from shared.runtime.settings import settings
from tests.conftest import User, call, session_of

HEAVY = ("cryptography.hazmat", "pydantic", "sqlalchemy", "pg8000", "jwt")


def test_an_access_token_verifies_with_the_published_key(active_user: User) -> None:
    token = session_of(active_user)["access_token"]
    (key,) = [
        key
        for key in jwt.PyJWKSet.from_dict(call("jwks").json).keys
        if key.key_id == jwt.get_unverified_header(token)["kid"]
    ]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="aegis", issuer=settings().public_url)
    assert claims["sub"] == str(active_user.id)


def test_all_keys_are_there_and_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    private = [key for _ in range(2) for key in json.loads(new_signing_keys())["keys"]]
    monkeypatch.setenv("JWT_SECRET_KEY", json.dumps({"keys": private}))
    settings_module.settings.cache_clear()
    response = call("jwks")
    monkeypatch.undo()
    settings_module.settings.cache_clear()
    assert response.json == {
        "keys": [
            {"kty": "EC", "crv": "P-256", "x": key["x"], "y": key["y"], "kid": key["kid"], "use": "sig", "alg": "ES256"}
            for key in private
        ]
    }
    assert not [key for key in private if key["d"] in response.text]


def test_it_may_be_cached_for_five_minutes() -> None:
    response = call("jwks")
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["Cache-Control"] == "public, max-age=300"
    unchanged = call("jwks", headers={"If-None-Match": response.headers["ETag"]})
    assert (unchanged.status_code, unchanged.data) == (304, b"")


def test_it_starts_and_answers_without_heavy_packages() -> None:
    program = (
        "import sys; from shared.framework.server import create_app;"
        "answer = create_app('jwks').test_client().get('/.well-known/jwks.json');"
        f"print(answer.status_code, sorted(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "200 []"
