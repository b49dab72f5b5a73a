"""The contents of the manifests in knative/functions/: functions, routes, triggers and schedules."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from shared.runtime.resource_names import function_name

MANIFESTS = Path(__file__).parents[2] / "knative" / "functions"
NAMESPACE = "aegis-user-service"
"""The namespace of the functions and everything that belongs to them on a cluster."""


@dataclass(frozen=True)
class Route:
    """One match of an HTTPRoute (Gateway API v1)."""

    function: str
    method: str | None
    path: str
    kind: Literal["Exact", "RegularExpression", "PathPrefix"]
    replaced_by: str
    """The replacement for the matched prefix; empty if the path is passed on unchanged."""

    def is_at(self, path: str) -> bool:
        """Return whether the route matches this whole path, not only a prefix."""
        return (
            self.path == path
            if self.kind == "Exact"
            else self.kind != "PathPrefix" and bool(re.fullmatch(self.path, path))
        )


@dataclass(frozen=True)
class Trigger:
    """A Trigger (Knative Eventing v1): which events go to which function, and how delivery is retried."""

    name: str
    service: str
    filters: tuple[dict[str, Any], ...]
    retries: int
    backoff_policy: str
    backoff_seconds: float
    timeout_seconds: float
    dead_letter_service: str
    """Receives events that could not be delivered."""

    @property
    def function(self) -> str:
        return function_name(self.service)

    def matches(self, attributes: dict[str, str]) -> bool:
        """Return whether an event with these attributes passes all filters."""
        return all(_passes(filter_, attributes) for filter_ in self.filters)


@dataclass(frozen=True)
class Schedule:
    """A PingSource (Knative Eventing v1): when a function receives a scheduled event."""

    name: str
    service: str
    schedule: str
    """Five fields, as in cron."""
    timezone: str


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    files = sorted(path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")
    return tuple(document for path in files for document in yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader))


@cache
def functions() -> tuple[str, ...]:
    """Return the names of all functions that have a Knative Service."""
    return tuple(function_name(document["metadata"]["name"]) for document in _of_kind("Service"))


@cache
def routes() -> tuple[Route, ...]:
    return tuple(
        Route(
            function=function_name(route["metadata"]["name"]),
            method=match.get("method"),
            path=match["path"]["value"],
            kind=match["path"]["type"],
            replaced_by=next(
                (
                    filter_["urlRewrite"]["path"]["replacePrefixMatch"]
                    for filter_ in rule.get("filters", ())
                    if "path" in filter_.get("urlRewrite", {})
                ),
                "",
            ),
        )
        for route in _of_kind("HTTPRoute")
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    )


@cache
def route_timeout_seconds() -> float:
    """Return how long the gateway waits for a response on any route, including the start of a pod."""
    patches = yaml.safe_load((MANIFESTS.parent / "base" / "every_route.yaml").read_text("utf-8"))
    (timeouts,) = [patch["value"] for patch in patches if patch["path"] == "/spec/rules/0/timeouts"]
    return seconds(timeouts["request"])


def methods_at(path: str) -> list[str]:
    """Return the methods that are routed at this path."""
    return [route.method for route in routes() if route.method and route.is_at(path)]


@cache
def triggers() -> tuple[Trigger, ...]:
    return tuple(
        Trigger(
            name=trigger["metadata"]["name"],
            service=trigger["spec"]["subscriber"]["ref"]["name"],
            filters=tuple(trigger["spec"]["filters"]),
            retries=trigger["spec"]["delivery"]["retry"],
            backoff_policy=trigger["spec"]["delivery"]["backoffPolicy"],
            backoff_seconds=seconds(trigger["spec"]["delivery"]["backoffDelay"]),
            timeout_seconds=seconds(trigger["spec"]["delivery"]["timeout"]),
            dead_letter_service=trigger["spec"]["delivery"]["deadLetterSink"]["ref"]["name"],
        )
        for trigger in _of_kind("Trigger")
    )


@cache
def schedules() -> tuple[Schedule, ...]:
    return tuple(
        Schedule(
            name=source["metadata"]["name"],
            service=source["spec"]["sink"]["ref"]["name"],
            schedule=source["spec"]["schedule"],
            timezone=source["spec"]["timezone"],
        )
        for source in _of_kind("PingSource")
    )


def seconds(duration: str) -> float:
    """Return the seconds of a duration in the format of Gateway API (30s, 500ms) or ISO 8601 (PT0.5S)."""
    if duration.startswith("PT"):
        return float(duration.removeprefix("PT").removesuffix("S"))
    return float(duration.removesuffix("ms")) / 1000 if duration.endswith("ms") else float(duration.removesuffix("s"))


def _of_kind(kind: str) -> Iterator[dict[str, Any]]:
    return (document for document in manifests() if document["kind"] == kind)


def _passes(filter_: dict[str, Any], attributes: dict[str, str]) -> bool:
    ((dialect, wanted),) = filter_.items()
    match dialect:
        case "exact":
            return bool(wanted.items() <= attributes.items())
        case "prefix":
            return all(attributes.get(name, "").startswith(value) for name, value in wanted.items())
        case "suffix":
            return all(attributes.get(name, "").endswith(value) for name, value in wanted.items())
        case "all":
            return all(_passes(inner, attributes) for inner in wanted)
        case "any":
            return any(_passes(inner, attributes) for inner in wanted)
        case "not":
            return not _passes(wanted, attributes)
    raise ValueError(f"the filter dialect {dialect} is not supported")
