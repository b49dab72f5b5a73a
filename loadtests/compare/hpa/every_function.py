"""All functions in one process, as in the guide's Deployment, for the comparison with Knative.

It is mounted into the image of the service and dispatches each request by the routes of the manifests.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, cast

from flask import Flask

from shared.framework.registry import uses
from shared.framework.server import Server, create_app, wait_for_network
from shared.runtime.manifests import Route, functions, routes
from shared.runtime.resource_names import function_name
from shared.runtime.settings import load

PRECISION = ("Exact", "RegularExpression", "PathPrefix")
"""The precedence of matching routes, as in the gateway."""


class EveryFunction:
    """A WSGI application with all functions."""

    def __init__(self) -> None:
        self.apps = {name: create_app(name) for name in functions()}
        self.routes = sorted(routes(), key=lambda route: (PRECISION.index(route.kind), -len(route.path)))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        function, environ["PATH_INFO"] = self.find(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        return self.apps[function](environ, start_response)

    def find(self, method: str, path: str) -> tuple[str, str]:
        """Return the function and the path that it sees."""
        service, _, rest = path.removeprefix("/").partition("/")
        if function_name(service) in self.apps:  # an event, from the dispatcher
            return function_name(service), "/" + rest
        if path in ("/health/live", "/metrics"):  # about the process, so any function can answer
            return "fallback", path
        route = next(route for route in self.routes if route.method in (None, method) and _is_at(route, path))
        return route.function, f"{route.replaced_by}{path}" if route.replaced_by else path


def _is_at(route: Route, path: str) -> bool:
    return path.startswith(route.path) if route.kind == "PathPrefix" else route.is_at(path)


def main() -> None:
    app = EveryFunction()
    needed = frozenset().union(*(uses(name) for name in functions()))
    settings = load(os.environ, needed)
    wait_for_network(settings, needed)
    address = f"{os.environ.get('HOST', '0.0.0.0')}:{os.environ['PORT']}"  # noqa: S104  # a pod must listen on all addresses
    Server(cast(Flask, app), bind=address, settings=settings).run()


if __name__ == "__main__":
    main()
