"""What is stated about each function that this process has loaded; the decorators fill it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.problems import Problem
from shared.settings import Dependency

if TYPE_CHECKING:
    from shared.access_tokens import Caller
    from shared.events import Event
    from shared.fields import RequestBody


@dataclass(frozen=True, kw_only=True)
class HttpFunction:
    """One operation; the OpenAPI document is made from it."""

    name: str
    method: str
    path: str
    """"/*" answers at any path, with any method."""
    status: int
    handler: Callable[..., Any]
    body: "type[RequestBody] | None"
    returns: type
    authenticated: bool
    cached: "Callable[[Caller], str] | None"
    problems: tuple[type[Problem], ...]
    uses: frozenset[Dependency]


@dataclass(frozen=True, kw_only=True)
class EventFunction:
    """One function behind a Trigger."""

    name: str
    handles: "dict[str, type[Event]]"
    handler: Callable[[Any], None]
    uses: frozenset[Dependency]


HTTP_FUNCTIONS: dict[str, HttpFunction] = {}
EVENT_FUNCTIONS: dict[str, EventFunction] = {}


def uses(function: str) -> frozenset[Dependency]:
    """What a loaded function needs to work."""
    return (HTTP_FUNCTIONS.get(function) or EVENT_FUNCTIONS[function]).uses
