"""Metadata that other services need to verify access tokens (RFC 8414, 2; OpenID Connect Discovery 1.0, 3)."""

from typing_extensions import TypedDict

from shared.http.request import Reply
from shared.identity.access_tokens import ALGORITHM, CLAIMS
from shared.runtime.settings import settings

JWKS_PATH = "/.well-known/jwks.json"
CACHE_CONTROL = "public, max-age=300"
"""The same for the public keys: publish a new key for longer than this before it signs."""


class Metadata(TypedDict):
    issuer: str
    jwks_uri: str
    response_types_supported: list[str]
    grant_types_supported: list[str]
    subject_types_supported: list[str]
    id_token_signing_alg_values_supported: list[str]
    claims_supported: list[str]


def metadata() -> Reply[Metadata]:
    """Return the document that both well-known paths serve."""
    issuer = settings().public_url
    document = Metadata(
        issuer=issuer,
        jwks_uri=issuer + JWKS_PATH,
        # Required. Users log in through our API, so there is no authorization endpoint.
        response_types_supported=["none"],
        # Without this member, the default would be authorization_code and implicit (RFC 8414, 2).
        grant_types_supported=[],
        subject_types_supported=["public"],
        # Required. We issue no ID tokens; clients read the algorithm of access tokens here.
        id_token_signing_alg_values_supported=[ALGORITHM],
        claims_supported=sorted(CLAIMS),
    )
    return Reply(document, headers={"Cache-Control": CACHE_CONTROL})
