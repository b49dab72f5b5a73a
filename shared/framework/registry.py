"""What is stated about each function that this process has loaded; the decorators fill it."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.framework.scaling import Delivery, Scaling
from shared.runtime.problems import Problem
from shared.runtime.settings import Dependency

if TYPE_CHECKING:
    from shared.events.schedules import ScheduleFired
    from shared.events.types import Event
    from shared.identity.access_tokens import Caller
    from shared.text.fields import QueryParameters, RequestBody


@dataclass(frozen=True, kw_only=True)
class HttpFunction:
    """One operation; the OpenAPI document is made from it."""

    name: str
    method: str
    path: str
    """A template (RFC 6570, level 1) whose parameters are UUIDs; "/*" answers at any path, with any method."""
    status: int
    handler: Callable[..., Any]
    takes: frozenset[str]
    """The names of the handler's parameters."""
    body: "type[RequestBody] | None"
    query: "type[QueryParameters] | None"
    returns: Any
    role: str | None
    recent_login: bool
    strongest_factor: bool
    limits: Mapping[str, str]
    cached: "Callable[[Caller], str] | None"
    may_lag: bool
    problems: tuple[type[Problem], ...]
    uses: frozenset[Dependency]
    scaling: Scaling

    @property
    def authenticated(self) -> bool:
        return "caller" in self.takes

    @property
    def knows_devices(self) -> bool:
        """Whether it takes a Device-Token."""
        return "device" in self.limits or "device_token" in self.takes

    @property
    def keeps_answers(self) -> bool:
        """Whether it takes an Idempotency-Key: the other methods are idempotent by themselves."""
        return self.method == "POST"


@dataclass(frozen=True, kw_only=True)
class EventFunction:
    """One function behind a Trigger or a schedule."""

    name: str
    handles: "dict[str, type[Event] | type[ScheduleFired]]"
    handler: Callable[..., None]
    takes: frozenset[str]
    """The names of the handler's parameters."""
    uses: frozenset[Dependency]
    scaling: Scaling
    delivery: Delivery
    schedule: str
    """When it runs, as cron's five fields in UTC; empty where events call it."""


_FUNCTIONS = Path(__file__).parents[2] / "functions"

HTTP_FUNCTIONS: dict[str, HttpFunction] = {}
EVENT_FUNCTIONS: dict[str, EventFunction] = {}


def load_all() -> set[str]:
    """Loads all functions, for who needs them together, as the OpenAPI document does; returns their names."""
    names = {path.stem for path in _FUNCTIONS.glob("*.py")} - {"__init__"}
    for name in names:
        importlib.import_module(f"functions.{name}")
    return names


def uses(function: str) -> frozenset[Dependency]:
    """What a loaded function needs to work."""
    return (HTTP_FUNCTIONS.get(function) or EVENT_FUNCTIONS[function]).uses
