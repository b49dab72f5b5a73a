"""Publish how to verify access tokens, for OpenID Connect Discovery clients."""

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

    A library that knows only the issuer finds the keys and the algorithm of access tokens here (OpenID Connect
    Discovery 1.0). There is no authorization or token endpoint: users log in with `login`, and no ID tokens are issued.
    Cache it for at most five minutes.
    """
    return metadata()
