"""Render every overlay as `kubectl apply -k` does and validate the result: `make check`.

Built-in Kubernetes kinds are checked against their schemas. Further checks cover what a schema cannot express.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from knative.keys import write_secrets
from knative.kubernetes.overlays import is_function, pods
from shared.framework.registry import load_all, uses
from shared.runtime.resource_names import function_name
from shared.runtime.settings import secrets_of

KUBERNETES = "1.34"
KNATIVE = Path(__file__).parent
OVERLAYS = KNATIVE / "overlays"
ACCESS = KNATIVE / "base" / "access"

DELIVERIES = ("dispatcher", "eventing")
"""The components that deliver events. An overlay names one of them, on one line."""

_CHOICE = re.compile(rf"(?<=/components/)({'|'.join(DELIVERIES)})$", re.MULTILINE)


def main() -> None:
    problems = [f"{name}: {problem}" for name, objects in renderings() for problem in problems_of(objects)]
    if problems:
        sys.exit("\n".join(problems))


def renderings() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each overlay's name and objects. One that names a delivery component is rendered with each of them."""
    yield "access", render(ACCESS)
    for file in sorted(OVERLAYS.rglob("kustomization.yaml")):
        name = str(file.parent.relative_to(OVERLAYS))
        if file.parent.name == "image":
            continue  # a component
        if _CHOICE.search(file.read_text("utf-8")):
            for delivery in DELIVERIES:
                yield f"{name} with {delivery}", render(file.parent, delivery)
        else:
            yield name, render(file.parent)


def render(overlay: Path, delivery: str | None = None) -> list[dict[str, Any]]:
    """Render an overlay and return its objects. With `delivery`, use that delivery component instead of its own.

    Exit with kubectl's message if the overlay cannot be rendered.
    """
    for environment in ("development", "staging"):
        write_secrets(OVERLAYS / environment / "data" / "secrets.env")
    kubectl = Path(sys.executable).parent / "kubectl"
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(KNATIVE, Path(folder, "knative"), ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        file = copied / overlay.relative_to(KNATIVE) / "kustomization.yaml"
        if delivery:
            file.write_text(_CHOICE.sub(delivery, file.read_text("utf-8")), "utf-8")
        done = subprocess.run([kubectl, "kustomize", file.parent], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{overlay} cannot be rendered:\n{done.stderr}")
    return [item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item]


def problems_of(objects: list[dict[str, Any]]) -> Iterator[str]:
    """Yield all problems of a rendered overlay."""
    for item in objects:
        name = f"{item['kind']} {item['metadata']['name']}"
        if "." not in item["apiVersion"].partition("/")[0] or item["apiVersion"].split("/")[0].endswith(".k8s.io"):
            yield from (f"{name}: {problem}" for problem in _against_schema(item))
        for pod in pods(item):
            yield from (f"{name}: {problem}" for problem in _against_restricted(pod))
    yield from _secrets([item for item in objects if is_function(item)])
    yield from _routes([item for item in objects if item["kind"] == "HTTPRoute"])


def _against_schema(item: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return  # a kind of the Gateway API
    except kubernetes_validate.ValidationError as error:
        yield f"{'/'.join(str(part) for part in error.path)}: {error.message}"


def _against_restricted(pod: dict[str, Any]) -> Iterator[str]:
    """Yield violations of the restricted Pod Security Standard and of a read-only root file system."""
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = pod.get("securityContext", {}) | container.get("securityContext", {})
        wanted = {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for name, value in wanted.items():
            if own.get(name) != value:
                yield f"container {container['name']}: {name} is not {json.dumps(value)}"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"container {container['name']} has no memory limit"
    if pod.get("automountServiceAccountToken") is not False:
        yield "the pod mounts a service account token"


def _secrets(services: list[dict[str, Any]]) -> Iterator[str]:
    """Yield functions whose secrets differ from those that they use."""
    load_all()
    for service in services:
        name = service["metadata"]["name"]
        (container,) = service["spec"]["template"]["spec"]["containers"]
        if any("secretRef" in source for source in container.get("envFrom", ())):
            yield f"Service {name}: gets a whole Secret"
        references = {
            variable["name"]: variable["valueFrom"]["secretKeyRef"]
            for variable in container["env"]
            if "secretKeyRef" in variable.get("valueFrom", {})
        }
        wanted = secrets_of(uses(function_name(name)))
        for secret in sorted(wanted - references.keys()):
            yield f"Service {name}: does not get {secret}, which it uses"
        for secret in sorted(references.keys() - wanted):
            yield f"Service {name}: gets {secret}, which it does not use"
        for secret, reference in references.items():
            if reference != {"name": "user-service-secrets", "key": secret}:
                yield f"Service {name}: {secret} does not come from user-service-secrets"


def _routes(routes: list[dict[str, Any]]) -> Iterator[str]:
    matches: Counter[str] = Counter()
    for route in routes:
        for rule in route["spec"]["rules"]:
            if rule.get("backendRefs") and not rule.get("timeouts"):
                yield f"HTTPRoute {route['metadata']['name']} states no timeout: the gateway's default is 15 s"
            for parent in route["spec"].get("parentRefs", ()):
                listener = parent.get("sectionName", "any listener")
                matches.update(f"{json.dumps(match, sort_keys=True)} at {listener}" for match in rule["matches"])
        if not route["spec"].get("parentRefs"):
            yield f"HTTPRoute {route['metadata']['name']} belongs to no gateway"
    for match, count in matches.items():
        if count > 1:
            yield f"{count} routes match {match}; the gateway silently uses the oldest"


if __name__ == "__main__":
    main()
