"""Checks before a release. They change nothing."""

import copy
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

from knative.kubernetes import jobs
from knative.kubernetes.cluster import Cluster, Object, Rejected, in_parallel, named
from knative.kubernetes.overlays import Environment
from knative.release.gate import Gate
from knative.release.inside import GATEWAY_CREDENTIAL
from knative.release.rollout import credential_of
from knative.terminal import Progress
from shared.runtime.manifests import NAMESPACE

KNATIVE = (1, 21)
SERVING = "knative-serving"

FLAGS = {
    "affinity": "kubernetes.podspec-affinity",
    "dnsConfig": "kubernetes.podspec-dnsconfig",
    "dnsPolicy": "kubernetes.podspec-dnspolicy",
    "hostAliases": "kubernetes.podspec-hostaliases",
    "initContainers": "kubernetes.podspec-init-containers",
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "priorityClassName": "kubernetes.podspec-priorityclassname",
    "runtimeClassName": "kubernetes.podspec-runtimeclassname",
    "schedulerName": "kubernetes.podspec-schedulername",
    "securityContext": "kubernetes.podspec-securitycontext",
    "tolerations": "kubernetes.podspec-tolerations",
    "topologySpreadConstraints": "kubernetes.podspec-topologyspreadconstraints",
}
"""Pod fields that Knative accepts only if its ConfigMap config-features enables them."""

OF_THE_COMMAND = (
    ("", "configmaps", ("list", "delete")),
    ("", "pods", ("list",)),
    ("", "pods/log", ("get",)),
    ("batch", "jobs", ("get", "create", "patch", "delete")),
    ("serving.knative.dev", "revisions", ("get", "list")),
    ("serving.knative.dev", "services", ("list", "delete")),
    ("gateway.networking.k8s.io", "httproutes", ("list",)),
    ("coordination.k8s.io", "leases", ("get", "create", "update", "delete")),
)


def problems(cluster: Cluster, environment: Environment, gate: Gate | None, progress: Progress) -> list[str]:
    """Return all problems. The only object created to find them is a Job, which is deleted again."""
    progress.wait(f"checking the cluster {cluster.context}")
    try:
        version = cluster.request("GET", "/version")["gitVersion"]
    except Rejected as error:
        return [f"context {cluster.context}: {error}"]
    unprepared = list(_prepared(cluster, environment))
    found = [*_knative(cluster, environment), *_permissions(cluster, environment), *unprepared]
    if gate:
        found += gate.problems()
    if not found:
        found += _dry_run(cluster, environment)
    if not unprepared:
        found += _image(cluster, environment, progress)
    if not found:
        progress.say(f"{cluster.context} (Kubernetes {version}) is ready for the release")
    return found


def _knative(cluster: Cluster, environment: Environment) -> Iterator[str]:
    try:
        controller = cluster.get("apps/v1", "Deployment", "controller", SERVING)
        features = cluster.get("v1", "ConfigMap", "config-features", SERVING) or {}
    except Rejected as error:
        yield f"cannot read the version and feature flags of Knative Serving: {error}"
        return
    version = ((controller or {}).get("metadata", {}).get("labels", {})).get("app.kubernetes.io/version", "")
    if not controller:
        yield "Knative Serving is not installed"
    # A build from source has no version number, only "devel".
    elif (numbers := tuple(map(int, re.findall(r"\d+", version)[:2]))) and numbers < KNATIVE:
        yield f"Knative Serving is {version}; {KNATIVE[0]}.{KNATIVE[1]} or newer is needed"
    used = {field for one in environment.functions for field in FLAGS if field in one["spec"]["template"]["spec"]}
    for field in sorted(used):
        if features.get("data", {}).get(FLAGS[field], "disabled") != "enabled":
            yield f"functions use {field}: enable {FLAGS[field]} in the ConfigMap config-features of {SERVING}"


def _permissions(cluster: Cluster, environment: Environment) -> list[str]:
    wanted: set[tuple[str, str, str]] = set()
    unknown = set()
    for one in environment.objects:
        group = one["apiVersion"].rpartition("/")[0]
        try:
            plural = cluster.plural(one["apiVersion"], one["kind"])
        except Rejected as error:
            unknown.add(str(error))
            continue
        verbs: tuple[str, ...] = ("get", "create", "patch")
        # Pruning deletes objects, but never those that hold data.
        if one not in environment.foundation:
            verbs += ("delete",)
        wanted |= {(group, plural, verb) for verb in verbs}
    wanted |= {(group, resource, verb) for group, resource, verbs in OF_THE_COMMAND for verb in verbs}

    def refused(rule: tuple[str, str, str]) -> str | None:
        group, name, verb = rule
        resource, _, subresource = name.partition("/")
        attributes = {"namespace": NAMESPACE, "group": group, "resource": resource, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes | ({"subresource": subresource} if subresource else {})},
        }
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return (
            None
            if answer["status"]["allowed"]
            else f"you do not have permission to {verb} {name}{group and '.' + group} in {NAMESPACE}"
        )

    return [*sorted(unknown), *filter(None, in_parallel(refused, sorted(wanted)))]


def _prepared(cluster: Cluster, environment: Environment) -> Iterator[str]:
    """Yield what an administrator must still apply. Secrets are left to the Job that checks the settings."""

    def problem(stated: Object) -> str | None:
        try:
            live = cluster.live(stated)
        except Rejected as error:
            return f"cannot read {named(stated)}: {error}"
        if live is None:
            return f"{named(stated)} does not exist in the cluster"
        return None if holds(live, stated) else f"{named(stated)} differs from the environment"

    found = in_parallel(problem, [one for one in environment.prepared if one["kind"] != "Secret"])
    if problems := list(filter(None, found)):
        yield from problems
        yield f"a cluster administrator must run: aegis prepare --environment {environment.name}"


def holds(live: Any, stated: Any) -> bool:
    """Return whether a live object has everything in the manifest. It can have more: the server adds defaults."""
    match stated:
        case dict():
            return all(holds(live[name], value) if name in live else not value for name, value in stated.items())
        case list():
            return len(live) == len(stated) and all(map(holds, live, stated))
    return bool(live == stated)


def _dry_run(cluster: Cluster, environment: Environment) -> list[str]:
    """Return the objections of the API server and its webhooks to each object."""

    def refused(manifest: Object) -> str | None:
        try:
            cluster.apply(manifest, dry_run=True)
        except Rejected as error:
            return f"{named(manifest)}: {error}"
        return None

    return [problem for problem in in_parallel(refused, environment.objects) if problem]


def _image(cluster: Cluster, environment: Environment, progress: Progress) -> list[str]:
    """Check that the cluster can pull the image and that the image accepts its settings and secrets."""
    name = f"check-{uuid.uuid4().hex[:8]}"
    job = jobs.derived(with_settings(environment), name, ["python", "-m", "knative.release.inside", "settings"])
    try:
        told = json.loads(jobs.run(cluster, job, progress, lambda: None).splitlines()[-1])
    except jobs.JobFailed as error:
        return [f"{environment.image}: {error}"]
    except Rejected as error:
        return [f"{named(job)}: {error}. A cluster administrator may have to run aegis prepare again"]
    except (ValueError, IndexError):
        return [f"{environment.image}: not an image of this service: it did not report its settings"]
    finally:
        cluster.delete(job)
    return [f"settings: {problem}" for problem in told["problems"]]


def with_settings(environment: Environment) -> Object:
    """Return the migration Job with literal settings, as their ConfigMaps may not be in the cluster yet."""
    job = copy.deepcopy(environment.migration)
    maps = {one["metadata"]["name"]: one["data"] for one in environment.foundation if one["kind"] == "ConfigMap"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    literals: dict[str, str] = {}
    for source in list(container.get("envFrom", ())):
        if "configMapRef" in source:
            literals |= maps[source["configMapRef"]["name"]]
            container["envFrom"].remove(source)
    kept = []
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            literals[variable["name"]] = maps[reference["name"]][reference["key"]]
        else:
            kept.append(variable)
    # All secrets of all functions: the migration itself needs fewer.
    functions = json.dumps(environment.functions)
    secrets = sorted(set(re.findall(r'"secretKeyRef": {"key": "[^"]+", "name": "([^"]+)"', functions)))
    container.setdefault("envFrom", []).extend({"secretRef": {"name": name}} for name in secrets)
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in literals.items())]
    for one in environment.rest:
        if one["kind"] == "HTTPRouteFilter" and (secret := credential_of(one)):
            reference = {"secretKeyRef": {"name": secret, "key": "credential"}}
            container["env"].append({"name": GATEWAY_CREDENTIAL, "valueFrom": reference})
    return job
