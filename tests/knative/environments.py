"""The three environments, rendered once for all tests."""

import fcntl
import json
from functools import cache
from typing import Any

from knative import check
from knative.kubernetes import overlays
from tests.conftest import DATA

ENVIRONMENTS = ("development", "staging", "production")

Objects = dict[tuple[str, str], dict[str, Any]]
"""By kind and name."""


@cache
def objects_of(environment: str, part: str = "", delivery: str | None = None) -> Objects:
    """What an environment consists of; `part` is data or migration."""
    rendered = DATA / f"rendered-{environment}-{part}-{delivery}.json"
    with rendered.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker renders it for all, as kubectl takes seconds
        if not rendered.exists():
            rendered.write_text(json.dumps(check.render(check.OVERLAYS / environment / part, delivery)))
    return {(item["kind"], item["metadata"]["name"]): item for item in json.loads(rendered.read_text())}


released = cache(overlays.environment)
"""An environment in a version that is released. It is the same object for all tests: none may change it."""


def functions_of(objects: Objects) -> list[dict[str, Any]]:
    """The Knative Services."""
    return [item for item in objects.values() if item["apiVersion"] == "serving.knative.dev/v1"]


def container(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = item["spec"]["template"]["spec"]["containers"][0]
    return found


def variables(item: dict[str, Any]) -> dict[str, str]:
    """The environment variables of its container that have a value in the manifest."""
    return {variable["name"]: variable.get("value", "") for variable in container(item)["env"]}


def scaling(service: dict[str, Any]) -> dict[str, str]:
    """What the autoscaler is told of a Knative Service, without the prefix of the annotations."""
    annotations: dict[str, str] = service["spec"]["template"]["metadata"]["annotations"]
    prefix = "autoscaling.knative.dev/"
    return {name.removeprefix(prefix): value for name, value in annotations.items() if name.startswith(prefix)}
