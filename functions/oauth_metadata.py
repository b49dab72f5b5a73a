"""Publish how access tokens are verified, for clients of OAuth 2.0."""

from shared.discovery import Metadata, metadata
from shared.http_function import http_function
from shared.request import Reply


@http_function("GET", "/.well-known/oauth-authorization-server", uses=["public_url"])
def oauth_metadata() -> Reply[Metadata]:
    """Read the authorization server metadata.

    RFC 8414: the same document as that of `openid_configuration`.
    """
    return metadata()
