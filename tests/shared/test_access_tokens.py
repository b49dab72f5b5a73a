"""What counts as a valid access token, and what does not."""

import base64
import json
import os
import string
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from shared.identity import access_tokens
from shared.identity.access_tokens import Caller, InvalidAccessToken
from shared.runtime.settings import settings
from tests.conftest import ROOT, User, call, client, log_in, wait_for

PATH = "/api/v1/users/me"


@pytest.fixture
def caller() -> Caller:
    return Caller(user_id=uuid.uuid4(), session_id=uuid.uuid4(), roles=("admin",), amr=("pwd",), authenticated_at=1)


def get(token: str, scheme: str = "Bearer") -> Any:
    return client("get_profile").get(PATH, headers={"Authorization": f"{scheme} {token}"})


def claims_of(user: User, **changes: Any) -> dict[str, Any]:
    claims = jwt.decode(log_in(user)["access_token"], options={"verify_signature": False}) | changes
    return {name: value for name, value in claims.items() if value is not None}


def sign(claims: dict[str, Any], key: Any = None, algorithm: str = "ES256", **header: Any) -> str:
    signing_key = access_tokens._private_key() if key is None else key
    headers = {"typ": "at+jwt", "kid": settings().signing_keys[0].kid} | header
    return jwt.encode(claims, signing_key, algorithm, headers)


def test_a_token_for_a_session_that_never_was_is_a_401(active_user: User) -> None:
    assert get(access_tokens.issue(Caller(user_id=active_user.id, session_id=uuid.uuid4()))).status_code == 401


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer a.b.c", "Basic dTpw", "Bearer " + "x" * 10_000, "Bearer 한국"]
)
def test_what_is_no_token_is_a_401(authorization: str) -> None:
    headers = {"Authorization": authorization.encode().decode("latin-1")}
    assert client("get_profile").get(PATH, headers=headers).status_code == 401


def test_the_scheme_may_be_written_in_any_case(active_user: User) -> None:
    assert get(log_in(active_user)["access_token"], scheme="bearer").status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://elsewhere.example.com"},
        {"aud": "another service"},
        {"exp": -31},
        {"exp": None},
        {"sub": None},
        {"sub": "not an id"},
        {"sid": None},
        {"sid": "not an id"},
        {"jti": None},
        {"client_id": None},
        {"iat": 120},
        {"nbf": 120},
    ],
    ids=str,
)
def test_a_wrong_claim_is_a_401(active_user: User, changes: dict[str, Any]) -> None:
    """Times are seconds from now."""
    changes = {name: time.time() + value if isinstance(value, int) else value for name, value in changes.items()}
    assert get(sign(claims_of(active_user, **changes))).status_code == 401


@pytest.fixture
def audience(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Starts anew with another JWT_AUDIENCE."""

    def change(value: str) -> None:
        monkeypatch.setenv("JWT_AUDIENCE", value)
        settings.cache_clear()
        access_tokens._verified.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()
    access_tokens._verified.cache_clear()


def test_a_token_names_the_first_audience_of_the_setting(active_user: User, audience: Callable[[str], None]) -> None:
    audience("https://api.example.com,aegis")
    token = log_in(active_user)["access_token"]
    assert jwt.decode(token, options={"verify_signature": False})["aud"] == "https://api.example.com"
    assert get(token).status_code == 200


def test_tokens_from_before_a_change_of_the_audience_pass_while_the_setting_names_theirs(
    active_user: User, audience: Callable[[str], None]
) -> None:
    token = log_in(active_user)["access_token"]
    audience("https://api.example.com,aegis")
    assert get(token).status_code == 200
    audience("https://api.example.com")
    assert get(token).status_code == 401


def test_a_session_outlives_a_change_of_the_audience(active_user: User, audience: Callable[[str], None]) -> None:
    tokens = log_in(active_user)
    audience("https://api.example.com")
    refreshed = call("refresh_token", body={"refresh_token": tokens["refresh_token"]})
    assert get(refreshed.json["access_token"]).status_code == 200


@pytest.mark.parametrize(
    "changed", [["aegis", "another service"], ["another service"], [], {}, 7, None, [["aegis"]]], ids=str
)
def test_one_of_several_audiences_is_enough(active_user: User, changed: Any) -> None:
    """RFC 7519, 4.1.3: a string, or an array of strings."""
    allowed = isinstance(changed, list) and "aegis" in changed
    assert get(sign(claims_of(active_user) | {"aud": changed})).status_code == (200 if allowed else 401)


def test_a_clock_may_be_half_a_minute_off(active_user: User) -> None:
    assert get(sign(claims_of(active_user, exp=int(time.time()) - 15))).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"typ": None},
        {"kid": "unknown"},
        {"kid": None},
        {"kid": 7},
        {"kid": ["a", "list"]},
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": None},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
    ],
    ids=str,
)
def test_a_wrong_header_is_a_401_though_it_is_signed(active_user: User, header: dict[str, Any]) -> None:
    claims = claims_of(active_user)
    right = {"alg": "ES256", "typ": "at+jwt", "kid": settings().signing_keys[0].kid}
    assert get(compact(right, claims)).status_code == 200
    assert get(compact(right | header, claims)).status_code == 401


def compact(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A JWS with our signature, whatever its header says."""
    message = b".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    r, s = decode_dss_signature(access_tokens._private_key().sign(message, ec.ECDSA(SHA256())))
    return (message + b"." + base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


@pytest.mark.parametrize("header", [b"[]", b"1", b'{"kid":' + b"[" * 2500, b"\xff", b"{}"], ids=repr)
def test_a_header_that_is_none_is_a_401(header: bytes) -> None:
    assert get(f"{base64url(header).decode()}.e30.{'A' * 86}").status_code == 401


def test_a_token_that_was_good_is_none_once_it_has_expired(active_user: User) -> None:
    token = sign(claims_of(active_user, exp=int(time.time()) - access_tokens.CLOCK_SKEW_SECONDS + 2))
    assert get(token).status_code == 200
    wait_for(lambda: get(token).status_code == 401)


def test_a_token_that_was_good_is_none_once_its_session_has_ended(active_user: User) -> None:
    tokens = log_in(active_user)
    assert get(tokens["access_token"]).status_code == 200
    assert call("logout", tokens).status_code == 204
    assert get(tokens["access_token"]).status_code == 401


@pytest.mark.parametrize("kid", ["the service's", "https://attacker.example/keys"])
def test_a_key_that_a_token_brings_along_or_points_to_is_not_taken(active_user: User, kid: str) -> None:
    """ASVS 5.0, 9.1.3; RFC 7515, 4.1.2 to 4.1.6."""
    own, url = ec.generate_private_key(ec.SECP256R1()), "https://attacker.example/keys"
    numbers = own.public_key().public_numbers()
    x, y = (base64url(number.to_bytes(32, "big")).decode() for number in (numbers.x, numbers.y))
    named = settings().signing_keys[0].kid if kid == "the service's" else kid
    header: dict[str, Any] = {
        "jwk": {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": named},
        **{"jku": url, "x5u": url, "x5c": ["MA"]},
    }
    assert get(sign(claims_of(active_user), own, kid=named, **header)).status_code == 401


def test_a_signing_key_may_be_padded_as_settings_take_it() -> None:
    jwk_set = json.loads(os.environ["JWT_SECRET_KEY"])
    for key in jwk_set["keys"]:
        key |= {name: key[name] + "=" for name in ("x", "y", "d")}
    code = (
        "import uuid; from shared.identity.access_tokens import *; "
        "caller = Caller(user_id=uuid.uuid4(), session_id=uuid.uuid4()); assert verify(issue(caller)) == caller"
    )
    environment = os.environ | {"JWT_SECRET_KEY": json.dumps(jwk_set)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_a_token_without_a_signature_is_a_401(active_user: User) -> None:
    assert get(sign(claims_of(active_user), key="", algorithm="none")).status_code == 401


def test_a_token_signed_with_a_shared_secret_is_a_401(active_user: User) -> None:
    public = settings().signing_keys[0].x
    assert get(sign(claims_of(active_user), key=public.ljust(64), algorithm="HS256")).status_code == 401


def test_a_token_signed_with_another_key_is_a_401(active_user: User) -> None:
    assert get(sign(claims_of(active_user), key=ec.generate_private_key(ec.SECP256R1()))).status_code == 401


@settings_(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), character=st.sampled_from(string.ascii_letters + string.digits + "-_.="))
def test_a_token_of_which_one_character_was_changed_is_no_token(caller: Caller, position: int, character: str) -> None:
    token = access_tokens.issue(caller)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    try:
        assert access_tokens.verify(changed) == caller
    except InvalidAccessToken:
        assert changed != token
    else:
        # The last character of base64url has bits that say nothing.
        assert changed == token or position == len(token) - 1 or changed[position + 1] == "."


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda content: content.decode("latin-1")))
def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(InvalidAccessToken):
        access_tokens.verify(text)
