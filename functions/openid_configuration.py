"""Publish how access tokens are verified, for clients of OpenID Connect Discovery."""

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http.request import Reply
from shared.identity.discovery import Metadata, metadata


@http_function(
    "GET",
    "/.well-known/openid-configuration",
    scaling=Scaling("cache", max_pods=1),  # clients read it once, when they start
    uses=["public_url"],
)
def openid_configuration() -> Reply[Metadata]:
    """Read the OpenID provider configuration.

    OpenID Connect Discovery 1.0: a library that is given the issuer alone finds the keys, and the algorithm, of access
    tokens here. It names no authorization or token endpoint because there is none: users log in with `login`, and no ID
    tokens are issued. Keep it for five minutes at most.
    """
    return metadata()
