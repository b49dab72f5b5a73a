"""What the group aegis-release may do: all that a release takes, and no way out of it."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from knative import check
from knative.kubernetes.overlays import PREPARED, pods
from knative.release import checks
from tests.conftest import ROOT
from tests.knative.environments import ENVIRONMENTS, Objects, objects_of, released

pytestmark = pytest.mark.no_service

NAMESPACE = "aegis-user-service"
RELEASE = [*(ROOT / "knative" / "release").glob("*.py"), *(ROOT / "knative" / "kubernetes").glob("*.py")]

Right = tuple[str, str, str]
"""Group, resource and verb."""

LISTED = re.compile(r'cluster\.list\((?:"([^"]+)"|(?:rollout\.)?(SERVING)), "(\w+)"')

ESCAPES = [
    ("", "namespaces", "patch update create delete"),
    ("", "secrets", "get list watch create patch update delete"),
    ("networking.k8s.io", "networkpolicies", "create patch update delete deletecollection"),
    ("", "serviceaccounts", "create patch update impersonate"),
    ("", "serviceaccounts/token", "create"),
    ("rbac.authorization.k8s.io", "roles", "create patch update bind escalate"),
    ("rbac.authorization.k8s.io", "rolebindings", "create patch update"),
    ("rbac.authorization.k8s.io", "clusterroles", "create patch update bind escalate"),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "create patch update"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "create patch update delete"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", "create patch update delete"),
    ("", "pods", "create patch update delete"),
    ("", "pods/exec", "create get"),
    ("", "pods/attach", "create get"),
    ("", "pods/portforward", "create get"),
    ("", "pods/ephemeralcontainers", "patch update"),
    ("", "replicationcontrollers", "create patch update"),
    ("apps", "replicasets", "create patch update"),
    ("apps", "daemonsets", "create patch update"),
    ("external-secrets.io", "externalsecrets", "create patch update"),
    ("postgresql.cnpg.io", "clusters", "create patch update delete"),
    ("postgresql.cnpg.io", "poolers", "create patch update delete"),
    ("kafka.strimzi.io", "kafkas", "create patch update delete"),
    ("monitoring.coreos.com", "podmonitors", "create patch update"),
    ("monitoring.coreos.com", "servicemonitors", "create patch update"),
    ("gateway.networking.k8s.io", "referencegrants", "create patch update"),
    ("", "persistentvolumeclaims", "create patch update delete"),
    ("", "nodes", "get list"),
]
"""Each a way to Secrets, to other accounts, past the walls, or out of the namespace."""


@cache
def access() -> list[dict[str, Any]]:
    return check.render(check.ACCESS)


def granted(namespace: str = NAMESPACE) -> set[Right]:
    return {
        (group, resource, verb)
        for item in access()
        if item["kind"] == "Role" and item["metadata"]["namespace"] == namespace
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def everywhere() -> Iterator[Objects]:
    for environment in ENVIRONMENTS:
        for delivery in check.DELIVERIES:
            yield objects_of(environment, delivery=delivery) | objects_of(environment, "migration")


def resource_of(item: dict[str, Any]) -> tuple[str, str]:
    return item["apiVersion"].rpartition("/")[0], plural(item["kind"])


def plural(kind: str) -> str:
    return re.sub("ys$", "ies", f"{kind.lower()}s").replace("gatewaies", "gateways")


def used() -> set[Right]:
    """By what environments consist of, and by what the source of the commands asks for."""
    first = {key for name in ENVIRONMENTS for key in objects_of(name, "data")}
    found = {
        (*resource_of(item), verb)
        for objects in everywhere()
        for key, item in objects.items()
        for verb in (
            () if item["kind"] == "Secret"
            else ("get",) if item["kind"] in PREPARED
            else ("get", "create", "patch") if key in first
            else ("get", "create", "patch", "delete")
        )
        if item["metadata"].get("namespace", NAMESPACE) == NAMESPACE
    }  # fmt: skip
    for file in RELEASE:
        for version, serving, kind in LISTED.findall(file.read_text("utf-8")):
            group = "serving.knative.dev" if serving else version.rpartition("/")[0]
            found.add((group, plural(kind), "list"))
    for group, resource, verbs in checks.OF_THE_COMMAND:
        found |= {(group, resource, verb) for verb in verbs}
    return found


def test_a_release_has_the_rights_that_it_uses_and_no_other() -> None:
    assert sorted(granted() - used()) == []
    assert sorted(used() - granted()) == []


@pytest.mark.parametrize(("group", "resource", "verbs"), ESCAPES)
def test_a_release_cannot_leave_its_namespace_read_a_secret_or_open_a_wall(
    group: str, resource: str, verbs: str
) -> None:
    for item in access():
        for rule in item.get("rules", ()) if item["kind"] in ("Role", "ClusterRole") else ():
            assert not {"*"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            if group in rule["apiGroups"] and resource in rule["resources"]:
                assert not set(verbs.split()) & set(rule["verbs"])


def test_outside_of_the_namespace_a_release_only_reads_what_it_names() -> None:
    assert not [item for item in access() if item["kind"].startswith("ClusterRole")]
    for item in access():
        if item["kind"] == "Role" and item["metadata"]["namespace"] != NAMESPACE:
            assert all(rule["verbs"] == ["get"] and rule["resourceNames"] for rule in item["rules"])


def test_no_wall_or_secret_is_among_what_a_release_applies() -> None:
    for name in ENVIRONMENTS:
        environment = released(name)
        assert not {one["kind"] for one in environment.objects} & PREPARED
        assert {one["kind"] for one in environment.prepared} <= PREPARED
        everything = objects_of(name) | objects_of(name, "migration")
        applied = [*environment.objects, *environment.prepared, environment.migration]
        assert {(one["kind"], one["metadata"]["name"]) for one in applied} == everything.keys()


def test_the_admission_policy_lets_every_workload_of_each_environment_pass() -> None:
    """What it refuses, tests/cluster/test_access.py shows: Kubernetes alone evaluates its expressions."""
    of_jobs, of_stateful_sets, of_others = admitted("secrets")
    for objects in everywhere():
        for (kind, name), item in objects.items():
            for pod in pods(item):
                is_job = kind in ("Job", "CronJob")
                admitted_ = of_jobs if is_job else of_stateful_sets if kind == "StatefulSet" else of_others
                assert secrets_of(pod) <= admitted_, name
                accounts = {"", "user-service"} | ({"backup"} if is_job else set())
                assert pod.get("serviceAccountName", "") in accounts, name
                assert pod["automountServiceAccountToken"] is False, name
                for volume in pod.get("volumes", ()):
                    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                    assert {"emptyDir", "configMap"} & volume.keys() or (is_job and claim == "backups"), name


def admitted(variable: str) -> list[set[str]]:
    """The Secrets that the policy lets Jobs, StatefulSets and other workloads have."""
    (policy,) = [
        item["spec"]
        for item in access()
        if item["kind"] == "ValidatingAdmissionPolicy" and item["metadata"]["name"] == "aegis-workloads"
    ]
    (expression,) = [one["expression"] for one in policy["variables"] if one["name"] == variable]
    return [set(re.findall("'([^']+)'", names)) for names in re.findall(r"\[(.*?)\]", expression)]


def secrets_of(pod: dict[str, Any]) -> set[str]:
    containers = [*pod["containers"], *pod.get("initContainers", ())]
    sources = [source["secretRef"] for one in containers for source in one.get("envFrom", ()) if "secretRef" in source]
    variables = [one.get("valueFrom", {}).get("secretKeyRef") for each in containers for one in each.get("env", ())]
    return {one["name"] for one in [*sources, *filter(None, variables)]}


def test_the_admission_policies_bind_whoever_may_read_no_secret() -> None:
    policies = {item["metadata"]["name"]: item for item in access() if item["kind"] == "ValidatingAdmissionPolicy"}
    bindings = [item["spec"] for item in access() if item["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert {one["policyName"]: one["validationActions"] for one in bindings} == {name: ["Deny"] for name in policies}
    for policy in policies.values():
        spec = policy["spec"]
        assert spec["failurePolicy"] == "Fail"
        assert any("authorizer" in one["expression"] for one in spec["matchConditions"])
    matched = {
        (group, resource)
        for policy in policies.values()
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    makes_pods = {resource_of(item) for objects in everywhere() for item in objects.values() if pods(item)}
    assert makes_pods <= matched


def test_what_an_administrator_applied_is_compared_as_far_as_it_is_stated() -> None:
    stated: dict[str, Any] = {"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 5432}]}], "none": None}}
    live: dict[str, Any] = {
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 5432, "protocol": "TCP"}]}]},
        "status": {},
    }
    assert checks.holds(live, stated)
    assert not checks.holds({"spec": {"podSelector": {}, "ingress": [{}]}}, stated)
    assert not checks.holds({"spec": {**live["spec"], "ingress": [*live["spec"]["ingress"], {}]}}, stated)
