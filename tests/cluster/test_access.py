"""What the group aegis-release is refused on a cluster, by RBAC and by the admission policies."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.conftest import IMAGE, NAMESPACE, kubectl, namespaced
from tests.conftest import ROOT, wait_for
from tests.knative.test_access import ESCAPES, access

RELEASER = ("--as=releaser", "--as-group=aegis-release", "--as-group=system:authenticated")

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module", autouse=True)
def prepared(deployed: None) -> None:
    kubectl("apply", "-k", str(ROOT / "knative" / "base" / "access"))


@pytest.mark.parametrize(("group", "resource", "verbs"), ESCAPES)
def test_the_cluster_refuses_each_way_out(group: str, resource: str, verbs: str) -> None:
    name, _, subresource = resource.partition("/")
    what = name + (f".{group}" if group else "")
    for verb in verbs.split():
        more = [f"--subresource={subresource}"] if subresource else []
        asked = ["kubectl", "auth", "can-i", verb, what, *more, "--namespace", NAMESPACE, *RELEASER]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        assert said.split()[-1:] == ["no"], f"{verb} {resource}"


def test_the_cluster_grants_what_the_role_states() -> None:
    listed = namespaced("auth", "can-i", "--list", *RELEASER)
    for item in access():
        if item["kind"] == "Role" and item["metadata"]["namespace"] == NAMESPACE:
            assert all(resource in listed for rule in item["rules"] for resource in rule["resources"])


def job(change: Change = lambda pod: None) -> dict[str, Any]:
    """A Job as a release makes them, changed."""
    container: dict[str, Any] = {
        "name": "probe",
        "image": IMAGE,
        "command": ["true"],
        "resources": {"limits": {"memory": "64Mi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    pod = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    change(pod)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "probe", "namespace": NAMESPACE},
        "spec": {"template": {"spec": pod}},
    }


def refusal(manifest: dict[str, Any]) -> str:
    """What the API server says to the releaser who would create it; empty when it would."""
    done = subprocess.run(
        ["kubectl", "create", "--dry-run=server", "-f", "-", *RELEASER],
        input=json.dumps(manifest),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def gives_secret(pod: dict[str, Any]) -> None:
    pod["containers"][0]["envFrom"] = [{"secretRef": {"name": "aegis-tls"}}]


def gives_key(pod: dict[str, Any]) -> None:
    key = {"secretKeyRef": {"name": "aegis-tls", "key": "tls.key"}}
    pod["containers"][0]["env"] = [{"name": "KEY", "valueFrom": key}]


def mounts(**volume: Any) -> Change:
    return lambda pod: pod.update(volumes=[{"name": "volume", **volume}])


def test_a_job_of_a_release_passes() -> None:
    assert refusal(job()) == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (gives_secret, "a container gets a Secret"),
        (gives_key, "a container gets a Secret"),
        (mounts(secret={"secretName": "aegis-tls"}), "a volume is none of"),
        (mounts(projected={"sources": [{"serviceAccountToken": {"path": "token"}}]}), "a volume is none of"),
        (mounts(persistentVolumeClaim={"claimName": "data-postgres-0"}), "a volume is none of"),
        (lambda pod: pod.update(serviceAccountName="postgres"), "the service account is neither"),
        (lambda pod: pod.update(automountServiceAccountToken=True), "automountServiceAccountToken"),
    ],
)
def test_a_job_that_reaches_for_more_is_refused(change: Change, says: str) -> None:
    wait_for(lambda: says in refusal(job(change)), seconds=30)  # a new policy is in force after some seconds


def test_a_service_with_an_address_outside_is_refused() -> None:
    service: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "probe", "namespace": NAMESPACE},
        "spec": {"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]},
    }
    wait_for(lambda: "a Service has externalIPs" in refusal(service), seconds=30)
    service["spec"] = {"ports": [{"port": 80}], "type": "LoadBalancer"}
    assert "neither ClusterIP nor ExternalName" in refusal(service)
