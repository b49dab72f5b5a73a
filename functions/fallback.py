"""Answer what no other function has a route for."""

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
    scaling=Scaling("cache"),  # browsers keep the answer to a preflight, and scanners may wait
)
def fallback(request: Request) -> None:
    """Answer what no other function has a route for: a browser's preflight, 405 for a known path, else 404.

    The route puts /unrouted before the path that was asked for.
    """
    # Envoy Gateway leaves out the slash that joins the two.
    path = "/" + request.path.removeprefix("/unrouted").removeprefix("/")
    allowed = methods_at(path)
    if not allowed:
        raise NotFound
    if not cors.is_preflight(request):
        raise MethodNotAllowed(allowed)
