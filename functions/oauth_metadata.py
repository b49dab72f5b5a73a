"""Publish how to verify access tokens, for OAuth 2.0 clients."""

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http.request import Reply
from shared.identity.discovery import Metadata, metadata


@http_function(
    "GET",
    "/.well-known/oauth-authorization-server",
    scaling=Scaling("cache", max_pods=1),  # clients read it once, when they start
    uses=["public_url"],
)
def oauth_metadata() -> Reply[Metadata]:
    """Read the authorization server metadata.

    The same document as `openid_configuration`, at the path of RFC 8414.
    """
    return metadata()
