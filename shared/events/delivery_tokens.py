"""Tokens that authorize event deliveries: each is for one function and valid for a few minutes.

Our dispatcher and our schedules sign it with DELIVERY_KEY, which only they and the event functions have. Knative
Eventing sends a service account token (OIDC), which is accepted if DELIVERY_ISSUER and DELIVERY_JWKS are set.
"""

import hashlib
import hmac
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from shared.runtime.problems import Problem
from shared.runtime.settings import required, settings

if TYPE_CHECKING:
    from jwt import PyJWK

LIFETIME_SECONDS = 120
"""Longer than a delivery waits for a pod to start."""
CLOCK_SKEW_SECONDS = 30
MAX_LENGTH = 4096
SENDERS = ("-oidc-eventing.knative.dev-trigger", "-oidc-sources.knative.dev-pingsource")
"""Name endings of the service accounts that Knative Eventing creates, one for each Trigger and PingSource."""


class UnauthenticatedDelivery(Problem):
    status = 401
    title = "Event delivery is not authenticated"
    detail = "The delivery has no token for this function, or its token is invalid or expired."
    authenticate = 'Bearer error="invalid_token"'


def authorization(service: str) -> dict[str, str]:
    """Return the header of a delivery to a service (RFC 6750), valid for LIFETIME_SECONDS."""
    expires = str(int(time.time()) + LIFETIME_SECONDS)
    return {"Authorization": f"Bearer {expires}.{_signature(service, expires)}"}


def authenticate(service: str, header: str) -> None:
    """Check the Authorization header of a delivery to this service.

    Raises:
        UnauthenticatedDelivery
    """
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or len(token) > MAX_LENGTH or not token.isascii():
        raise UnauthenticatedDelivery
    if token.count(".") == 2 and settings().delivery_jwks:
        _authenticate_service_account(service, token)
        return
    expires, _, signature = token.partition(".")
    is_ours = hmac.compare_digest(signature, _signature(service, expires))
    now = int(time.time())
    if not (is_ours and expires.isdigit() and now - CLOCK_SKEW_SECONDS < int(expires)):
        raise UnauthenticatedDelivery


def _signature(service: str, expires: str) -> str:
    message = f"aegis delivery\n{service}\n{expires}".encode()
    return hmac.digest(required(settings().delivery_key, "DELIVERY_KEY"), message, hashlib.sha256).hex()


def _authenticate_service_account(service: str, token: str) -> None:
    """Check a Kubernetes token for this audience (OpenID Connect Core 1.0, 3.1.3.7).

    Any pod of the cluster can get a token for any audience, so the subject of the token decides.
    """
    import jwt

    from shared.runtime.manifests import NAMESPACE

    try:
        kid = jwt.get_unverified_header(token).get("kid")
        claims = jwt.decode(
            token,
            _cluster_keys(settings().delivery_jwks)[kid],
            algorithms=["RS256", "ES256"],
            audience=service,
            issuer=settings().delivery_issuer,
            leeway=CLOCK_SKEW_SECONDS,
            options={"require": ["exp", "iat", "sub"]},
        )
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        raise UnauthenticatedDelivery from None
    subject = str(claims["sub"])
    if not (subject.startswith(f"system:serviceaccount:{NAMESPACE}:") and subject.endswith(SENDERS)):
        raise UnauthenticatedDelivery


@lru_cache(maxsize=1)
def _cluster_keys(jwk_set: str) -> "dict[str | None, PyJWK]":
    """Return the cluster's keys by id. Cached, because there can be thousands of deliveries a minute."""
    from jwt import PyJWKSet

    return {key.key_id: key for key in PyJWKSet.from_json(jwk_set).keys}
