"""The three environments, rendered once for all tests."""

from functools import cache
from typing import Any

from knative import check

ENVIRONMENTS = ("development", "staging", "production")

Objects = dict[tuple[str, str], dict[str, Any]]
"""By kind and name."""


@cache
def objects_of(environment: str, part: str = "", delivery: str | None = None) -> Objects:
    """What an environment consists of; `part` is data or migration."""
    rendered = check.render(check.OVERLAYS / environment / part, delivery)
    return {(item["kind"], item["metadata"]["name"]): item for item in rendered}


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
