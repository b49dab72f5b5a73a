"""The three environments, rendered once for all tests."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

from knative import check
from knative.kubernetes import overlays
from knative.kubernetes.overlays import Environment
from tests.conftest import DATA, once_for_all_workers

ENVIRONMENTS = ("development", "staging", "production")
VERSION = "v1.2.3"

Objects = dict[tuple[str, str], dict[str, Any]]
"""By kind and name."""


@cache
def objects_of(environment: str, part: str = "", delivery: str | None = None) -> Objects:
    """What an environment consists of; `part` is data or migration."""
    overlay = check.OVERLAYS / environment / part
    rendered = _rendered(f"{environment}-{part}-{delivery}", lambda: check.render(overlay, delivery))
    return {(item["kind"], item["metadata"]["name"]): item for item in rendered}


@cache
def released(environment: str) -> Environment:
    """An environment in a version that is released: the same object for all tests, so none may change it."""
    return Environment(
        **_rendered(f"{environment}-{VERSION}", lambda: asdict(overlays.environment(environment, VERSION)))
    )


def _rendered(name: str, render: Callable[[], Any]) -> Any:
    """What was rendered under this name: once for all workers, as kubectl takes seconds."""
    file = DATA / f"rendered-{name}.json"
    once_for_all_workers(file, lambda: file.write_text(json.dumps(render())))
    return json.loads(file.read_text())


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
