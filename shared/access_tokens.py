"""Access tokens: signed JWTs for ten minutes (RFC 9068, ES256)."""

import time
import uuid
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from shared.settings import settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

LIFETIME_SECONDS = 600
CLOCK_SKEW_SECONDS = 30
AUDIENCE = "aegis"
ALGORITHM = "ES256"
TYPE = "at+jwt"
_CLAIMS = ["iss", "aud", "sub", "client_id", "sid", "roles", "amr", "auth_time", "iat", "exp", "jti"]
_MAX_LENGTH = 4096


class InvalidAccessToken(Exception):
    """Not one of our access tokens, or not any more."""


MULTI_FACTOR = "mfa"
"""Among a session's methods when the user proved more than one factor (RFC 8176, 2)."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls: a user in one of their sessions, and how they proved who they are."""

    user_id: UUID
    session_id: UUID
    roles: tuple[str, ...] = ()
    amr: tuple[str, ...] = ()
    """Authentication methods (RFC 8176): pwd, otp, pop and user (a passkey), mfa."""
    authenticated_at: int = 0
    """Seconds since the epoch; a refresh does not change it."""


def issue(caller: Caller) -> str:
    """A new access token for the caller."""
    import jwt

    now = int(time.time())
    claims = {
        "iss": settings().public_url,
        "aud": AUDIENCE,
        "sub": str(caller.user_id),
        "client_id": AUDIENCE,
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
    """The caller whom a token names, after all checks of RFC 9068, 4; the session may have ended since.

    Raises:
        InvalidAccessToken
    """
    import jwt

    try:
        if len(token) > _MAX_LENGTH:
            raise InvalidAccessToken
        header = jwt.get_unverified_header(token)
        key = _public_keys().get(header.get("kid", ""))
        if key is None or header.get("typ") != TYPE:
            raise InvalidAccessToken
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=settings().public_url,
            leeway=CLOCK_SKEW_SECONDS,
            options={"require": _CLAIMS},
        )
        return Caller(
            user_id=UUID(claims["sub"]),
            session_id=UUID(claims["sid"]),
            roles=tuple(claims["roles"]),
            amr=tuple(claims["amr"]),
            authenticated_at=int(claims["auth_time"]),
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError) as error:
        raise InvalidAccessToken from error


def _number(coordinate: str) -> int:
    from jwt.utils import base64url_decode

    return int.from_bytes(base64url_decode(coordinate), "big")


@cache
def _private_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(_number(settings().signing_keys[0].d), ec.SECP256R1())


@cache
def _public_keys() -> "dict[str, EllipticCurvePublicKey]":
    from cryptography.hazmat.primitives.asymmetric import ec

    return {
        key.kid: ec.EllipticCurvePublicNumbers(_number(key.x), _number(key.y), ec.SECP256R1()).public_key()
        for key in settings().signing_keys
    }
