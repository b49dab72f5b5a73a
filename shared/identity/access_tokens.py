"""Access tokens: signed JWTs that are valid for ten minutes (RFC 9068, ES256)."""

import base64
import json
import time
import uuid
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from shared.runtime.settings import settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey

LIFETIME_SECONDS = 600
CLOCK_SKEW_SECONDS = 30
CLIENT_ID = "aegis"
"""Users log in only through our API, so it is the client of every token (RFC 9068, 2.2)."""
ALGORITHM = "ES256"
TYPE = "at+jwt"
CLAIMS = frozenset({"iss", "aud", "sub", "client_id", "sid", "roles", "amr", "auth_time", "iat", "exp", "jti"})
_NUMBER_BYTES = 32
_MAX_LENGTH = 4096
_MAX_REMEMBERED = 2048
"""Number of verified tokens to cache, because callers send the same token repeatedly: about two megabytes."""


class InvalidAccessToken(Exception):
    """The access token is not ours, or is no longer valid."""


MULTI_FACTOR = "mfa"
"""Among a session's methods when the user proved more than one factor (RFC 8176, 2)."""
PASSKEY = "pop"
"""Among a session's methods when the user proved possession of a key (RFC 8176, 2)."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The user who calls, their session, and how they proved who they are."""

    user_id: UUID
    session_id: UUID
    roles: tuple[str, ...] = ()
    amr: tuple[str, ...] = ()
    """Authentication methods (RFC 8176): pwd, otp, pop and user (a passkey), mfa."""
    authenticated_at: int = 0
    """Seconds since the epoch; a refresh does not change it."""


def issue(caller: Caller) -> str:
    """Issue an access token for the caller."""
    import jwt

    now = int(time.time())
    claims = {
        "iss": settings().public_url,
        "aud": settings().audiences[0],
        "sub": str(caller.user_id),
        "client_id": CLIENT_ID,
        "sid": str(caller.session_id),
        "roles": caller.roles,
        "amr": caller.amr,
        "auth_time": caller.authenticated_at,
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        "jti": str(uuid.uuid4()),
    }
    return jwt.encode(claims, _private_key(), ALGORITHM, {"typ": TYPE, "kid": settings().signing_keys[0].kid})


def verify(token: str) -> Caller:
    """Return the caller that a token names, after all checks of RFC 9068, 4. The session may have ended since.

    Raises:
        InvalidAccessToken
    """
    if len(token) > _MAX_LENGTH:
        raise InvalidAccessToken
    caller, expires_at = _verified(token)
    if time.time() >= expires_at + CLOCK_SKEW_SECONDS:
        raise InvalidAccessToken
    return caller


@lru_cache(maxsize=_MAX_REMEMBERED)
def _verified(token: str) -> tuple[Caller, int]:
    """Return the caller, and when the token expires in seconds since the epoch, which `verify` checks.

    Invalid tokens are not cached.
    """
    try:
        claims = _signed_claims(token)
        expires_at = int(claims["exp"])
        audience = claims["aud"]
        if (
            not claims.keys() >= CLAIMS
            or claims["iss"] != settings().public_url
            or not {*([audience] if isinstance(audience, str) else audience)} & {*settings().audiences}
            or time.time() < max(claims["iat"], claims.get("nbf", 0)) - CLOCK_SKEW_SECONDS
        ):
            raise InvalidAccessToken
        caller = Caller(
            user_id=UUID(claims["sub"]),
            session_id=UUID(claims["sid"]),
            roles=tuple(claims["roles"]),
            amr=tuple(claims["amr"]),
            authenticated_at=int(claims["auth_time"]),
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InvalidAccessToken from error
    return caller, expires_at


def _signed_claims(token: str) -> dict[str, Any]:
    """Return the claims of a compact JWS with one of our signatures (RFC 7515, 5.2; RFC 7518, 3.4).

    Without PyJWT, because importing it takes a tenth of a cold start.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    signed, _, signature = token.rpartition(".")
    header_part, _, payload_part = signed.partition(".")
    header: dict[str, Any] = json.loads(_decoded(header_part))
    key = _public_keys().get(header.get("kid", ""))
    # "crit" lists extensions that must be understood; we support none.
    if key is None or header.get("alg") != ALGORITHM or header.get("typ") != TYPE or "crit" in header:
        raise InvalidAccessToken
    numbers = _decoded(signature)
    if len(numbers) != 2 * _NUMBER_BYTES:
        raise InvalidAccessToken
    r, s = (int.from_bytes(number, "big") for number in (numbers[:_NUMBER_BYTES], numbers[_NUMBER_BYTES:]))
    try:
        key.verify(encode_dss_signature(r, s), signed.encode(), _signature_algorithm())
    except InvalidSignature:
        raise InvalidAccessToken from None
    claims: dict[str, Any] = json.loads(_decoded(payload_part))
    return claims


def _decoded(part: str) -> bytes:
    """Decode base64url without padding (RFC 7515, 2)."""
    if "=" in part:
        raise ValueError
    return base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)


def _number(coordinate: str) -> int:
    # Less strict than `_decoded`, because the settings have validated the key.
    return int.from_bytes(base64.urlsafe_b64decode(coordinate + "="), "big")


@cache
def _signature_algorithm() -> "ECDSA":
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return ec.ECDSA(SHA256())


@cache
def _private_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(_number(settings().signing_keys[0].d), ec.SECP256R1())


@cache
def _public_keys() -> "dict[str, EllipticCurvePublicKey]":
    from cryptography.hazmat.primitives.asymmetric import ec

    return {
        key.kid: ec.EllipticCurvePublicNumbers(_number(key.x), _number(key.y), ec.SECP256R1()).public_key()
        for key in settings().public_keys
    }
