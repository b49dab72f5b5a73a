"""The functions that this process has loaded, as declared by their decorators."""

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
    """One operation. The OpenAPI document is made from it."""

    name: str
    method: str
    path: str
    """A template (RFC 6570, level 1) whose parameters are UUIDs; "/*" matches any path and any method."""
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
        """True if it accepts a Device-Token."""
        return "device" in self.limits or "device_token" in self.takes

    @property
    def keeps_answers(self) -> bool:
        """True if it accepts an Idempotency-Key. The other methods are idempotent without one."""
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
    """When it runs, as five cron fields in UTC; empty for a function with a Trigger."""


_FUNCTIONS = Path(__file__).parents[2] / "functions"

HTTP_FUNCTIONS: dict[str, HttpFunction] = {}
EVENT_FUNCTIONS: dict[str, EventFunction] = {}


def load_all() -> set[str]:
    """Load all functions, as the OpenAPI document needs them, and return their names."""
    names = {path.stem for path in _FUNCTIONS.glob("*.py")} - {"__init__"}
    for name in names:
        importlib.import_module(f"functions.{name}")
    return names


def uses(function: str) -> frozenset[Dependency]:
    """Return the dependencies of a loaded function."""
    return (HTTP_FUNCTIONS.get(function) or EVENT_FUNCTIONS[function]).uses
