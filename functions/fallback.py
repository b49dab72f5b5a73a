"""Answer what no other function has a route for."""

from shared.http_function import http_function
from shared.problems import MethodNotAllowed, NotFound
from shared.routes import methods_at


@http_function("*", "/*")
def fallback(path: str) -> None:
    """Answer what no other function has a route for: 405 for a known path, else 404.

    The route puts /unrouted before the path that was asked for.
    """
    if allowed := methods_at(path.removeprefix("/unrouted")):
        raise MethodNotAllowed(allowed)
    raise NotFound
