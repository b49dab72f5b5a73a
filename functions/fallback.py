"""Answer requests that match no other route."""

from flask import Request

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http import cors
from shared.runtime.manifests import methods_at
from shared.runtime.problems import MethodNotAllowed, NotFound


@http_function(
    "*",
    "/*",
    status=204,
    scaling=Scaling("cache"),  # browsers cache the response to a preflight, and scanners can wait
)
def fallback(request: Request) -> None:
    """Answer requests that match no other route: a browser's preflight, 405 for a known path, otherwise 404.

    The route prepends /unrouted to the requested path.
    """
    # Envoy Gateway joins the two without a slash.
    path = "/" + request.path.removeprefix("/unrouted").removeprefix("/")
    allowed = methods_at(path)
    if not allowed:
        raise NotFound
    if not cors.is_preflight(request):
        raise MethodNotAllowed(allowed)
