"""Every rendered object that is not Kubernetes' own, against the CRD of its kind, with unknown fields refused.

The CRDs are those of Knative 1.21, the Gateway API, Envoy Gateway, the Prometheus operator, CloudNativePG and External
Secrets, from the Go modules in crds.txt. Strimzi is written in Java: its two kinds are held against none. Knative's
Kafka broker adds none that we use: a Broker of its class, and its Triggers, are Knative Eventing's.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from knative import check

pytestmark = [pytest.mark.slow, pytest.mark.no_service]

CRDS = dict(line.split() for line in Path(__file__).with_name("crds.txt").read_text("utf-8").splitlines())
"""Go modules, and where their CRDs are."""

STRIMZI = "kafka.strimzi.io"

Schemas = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    """The JSON Schema of each kind, by apiVersion and kind."""
    wanted = f"go mod download {' '.join(CRDS)}"
    if not shutil.which("go"):
        pytest.skip(f"NO GO, from whose modules the CRDs are read: install it, and {wanted}")
    asked = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True)
    modules = Path(asked.stdout.strip())
    if not all((modules / module).is_dir() for module in CRDS):
        pytest.skip(f"NO CRDS: {wanted}")
    return {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): of_object(
            version["schema"]["openAPIV3Schema"]
        )
        for module, files in CRDS.items()
        for file in (modules / module).glob(files)
        for crd in yaml.load_all(file.read_text("utf-8"), yaml.CSafeLoader)
        for version in crd["spec"]["versions"]
    }


def of_object(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of whole objects, from that of a CRD's version."""
    strict = strictly(schema)
    strict["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return strict


def strictly(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema that refuses fields which a CRD's does not name, as strict field validation does."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: strictly(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        strict["items"] = strictly(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = strictly(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    return strict


def problems(schemas: Schemas, objects: list[dict[str, Any]]) -> Iterator[str]:
    """What the CRDs say against objects. Kubernetes' own kinds are for `make check`."""
    for item in objects:
        group = item["apiVersion"].partition("/")[0]
        if "." not in group or group == STRIMZI or (group.endswith(".k8s.io") and not group.startswith("gateway.")):
            continue
        for error in Draft202012Validator(schemas[item["apiVersion"], item["kind"]]).iter_errors(item):
            yield f"{item['kind']} {item['metadata']['name']} {error.json_path}: {error.message}"


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[dict[str, Any]]]:
    return dict(check.renderings())


def test_every_object_is_as_its_crd_says(schemas: Schemas, rendered: dict[str, list[dict[str, Any]]]) -> None:
    kinds = {item["kind"] for objects in rendered.values() for item in objects}
    assert kinds >= {"Broker", "Trigger", "PingSource", "HTTPRoute", "ReferenceGrant", "PodMonitor", "ServiceMonitor"}
    assert kinds >= {"HTTPRouteFilter", "ClientTrafficPolicy", "BackendTrafficPolicy"}
    assert kinds >= {"Cluster", "Pooler", "ExternalSecret", "PrometheusRule"}
    for name, objects in rendered.items():
        assert (name, list(problems(schemas, objects))) == (name, [])


def test_a_field_that_the_crd_does_not_name_is_found(schemas: Schemas) -> None:
    source = {"schedul": "0 0 * * *", "sink": {"uri": "http://here"}}
    assert list(problems(schemas, [named("sources.knative.dev/v1", "PingSource", source)])) == [
        "PingSource any $.spec: Additional properties are not allowed ('schedul' was unexpected)"
    ]


def test_a_value_of_another_type_is_found(schemas: Schemas) -> None:
    trigger = {"broker": "aegis-user", "delivery": {"retry": "ten"}}
    assert list(problems(schemas, [named("eventing.knative.dev/v1", "Trigger", trigger)])) == [
        "Trigger any $.spec.delivery.retry: 'ten' is not of type 'integer'"
    ]


def test_a_required_field_that_is_missing_is_found(schemas: Schemas) -> None:
    gateway = {"listeners": [{"name": "http", "protocol": "HTTP", "port": 80}]}
    assert list(problems(schemas, [named("gateway.networking.k8s.io/v1", "Gateway", gateway)])) == [
        "Gateway any $.spec: 'gatewayClassName' is a required property"
    ]


def named(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "any"}, "spec": spec}
