"""Metadata that other services need to verify access tokens (RFC 8414, 2; OpenID Connect Discovery 1.0, 3)."""

from typing_extensions import TypedDict

from shared.http.request import Reply
from shared.identity.access_tokens import ALGORITHM, CLAIMS
from shared.runtime.settings import settings

JWKS_PATH = "/.well-known/jwks.json"
CACHE_CONTROL = "public, max-age=300"
"""Also of the public keys: a new key should be published for longer than this before it signs."""


class Metadata(TypedDict):
    issuer: str
    jwks_uri: str
    response_types_supported: list[str]
    grant_types_supported: list[str]
    subject_types_supported: list[str]
    id_token_signing_alg_values_supported: list[str]
    claims_supported: list[str]


def metadata() -> Reply[Metadata]:
    """The same document at both well-known paths."""
    issuer = settings().public_url
    document = Metadata(
        issuer=issuer,
        jwks_uri=issuer + JWKS_PATH,
        # A required member. Users log in through our API, so there is no authorization endpoint to ask for a response.
        response_types_supported=["none"],
        # Left out, it would promise authorization_code and implicit (RFC 8414, 2).
        grant_types_supported=[],
        subject_types_supported=["public"],
        # Required. We issue no ID tokens; clients take from here which algorithm verifies an access token.
        id_token_signing_alg_values_supported=[ALGORITHM],
        claims_supported=sorted(CLAIMS),
    )
    return Reply(document, headers={"Cache-Control": CACHE_CONTROL})
