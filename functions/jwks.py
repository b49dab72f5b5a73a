"""Publish the keys that access tokens are verified with."""

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
    scaling=Scaling("cache"),  # clients keep the keys for five minutes
    uses=["access_tokens"],
)
def jwks() -> Reply[PublicKeys]:
    """Read the public keys.

    A JWK Set (RFC 7517, 5) of every key that access tokens may be signed with (RFC 9068, 4): find the one whose `kid`
    is in the token's header. To replace a key, the next one is published first, then signs; so keep the set for five
    minutes at most, and read it again when a token names a key that is not in it.
    """
    keys = [
        PublicKey(kty="EC", crv="P-256", x=key.x, y=key.y, kid=key.kid, use="sig", alg=ALGORITHM)
        for key in settings().public_keys
    ]
    return Reply(PublicKeys(keys=keys), headers={"Cache-Control": CACHE_CONTROL})
