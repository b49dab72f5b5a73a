"""Publish the keys that verify access tokens."""

from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http.request import Reply
from shared.identity.access_tokens import ALGORITHM
from shared.identity.discovery import CACHE_CONTROL, JWKS_PATH
from shared.runtime.settings import settings


class PublicKey(TypedDict):
    kty: str
    crv: str
    x: str
    y: str
    kid: str
    use: str
    alg: str


class PublicKeys(TypedDict):
    keys: list[PublicKey]


@http_function(
    "GET",
    JWKS_PATH,
    scaling=Scaling("cache"),  # clients cache the keys for five minutes
    uses=["access_tokens"],
)
def jwks() -> Reply[PublicKeys]:
    """Read the public keys.

    A JWK Set (RFC 7517, 5) of all keys that may have signed an access token (RFC 9068, 4). Use the key whose `kid` is
    in the token's header. A new key is published before it signs, so cache the set for at most five minutes, and fetch
    it again when a token names an unknown key.
    """
    keys = [
        PublicKey(kty="EC", crv="P-256", x=key.x, y=key.y, kid=key.kid, use="sig", alg=ALGORITHM)
        for key in settings().public_keys
    ]
    return Reply(PublicKeys(keys=keys), headers={"Cache-Control": CACHE_CONTROL})
