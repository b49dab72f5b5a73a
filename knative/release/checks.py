"""All that stands against a release, before anything is changed."""

import base64
import copy
import json
import re
import uuid
from collections.abc import Iterator

from knative.release import inside, jobs
from knative.release.cluster import Cluster, Object, Rejected, in_parallel, named
from knative.release.gate import Gate
from knative.release.overlays import Environment
from knative.release.progress import Progress
from shared.manifests import NAMESPACE

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
"""What Knative takes in a pod only where its ConfigMap config-features allows it."""

_OF_THE_COMMAND = (
    ("", "configmaps", ("list", "delete")),
    ("", "pods", ("list",)),
    ("", "pods/log", ("get",)),
    ("batch", "jobs", ("get", "create", "patch", "delete")),
    ("serving.knative.dev", "revisions", ("get", "list")),
    ("serving.knative.dev", "services", ("list", "delete")),
    ("coordination.k8s.io", "leases", ("get", "create", "update", "delete")),
)


def problems(cluster: Cluster, environment: Environment, gate: Gate | None, progress: Progress) -> list[str]:
    """Everything that is wrong, and nothing is changed to find out but a Job that is deleted again."""
    progress.wait(f"asking {cluster.context} whether it can take the release")
    try:
        version = cluster.request("GET", "/version")["gitVersion"]
    except Rejected as error:
        return [f"context {cluster.context}: {error}"]
    found = [*_knative(cluster, environment), *_permissions(cluster, environment)]
    is_new = cluster.get("v1", "Namespace", NAMESPACE) is None
    missing = list(_secrets(cluster, environment))
    found += missing
    if gate:
        found += gate.problems()
    if not is_new and not found:
        found += _dry_run(cluster, environment)
    if not is_new and not missing:
        found += _image(cluster, environment, progress)
    if not found:
        progress.say(
            f"{cluster.context} (Kubernetes {version}) can take it"
            + (f"; the namespace {NAMESPACE} is new, so the image is tried by the migration" if is_new else "")
        )
    return found


def _knative(cluster: Cluster, environment: Environment) -> Iterator[str]:
    try:
        controller = cluster.get("apps/v1", "Deployment", "controller", SERVING)
        features = cluster.get("v1", "ConfigMap", "config-features", SERVING) or {}
    except Rejected as error:
        yield f"Knative Serving: its version and flags cannot be read: {error}"
        return
    version = ((controller or {}).get("metadata", {}).get("labels", {})).get("app.kubernetes.io/version", "")
    if not controller:
        yield "Knative Serving is not installed"
    # One that was built from its source has no version, as "devel".
    elif (numbers := tuple(map(int, re.findall(r"\d+", version)[:2]))) and numbers < KNATIVE:
        yield f"Knative Serving is {version}; {KNATIVE[0]}.{KNATIVE[1]} or newer is needed"
    used = {field for one in environment.functions for field in FLAGS if field in one["spec"]["template"]["spec"]}
    for field in sorted(used):
        if features.get("data", {}).get(FLAGS[field], "disabled") != "enabled":
            yield f"Knative Serving: functions use {field}, and {FLAGS[field]} in config-features is not enabled"


def _permissions(cluster: Cluster, environment: Environment) -> list[str]:
    wanted: set[tuple[str, str, str, str]] = set()
    unknown = set()
    for one in environment.objects:
        if one["kind"] == "Namespace":
            continue
        group = one["apiVersion"].rpartition("/")[0]
        try:
            plural = cluster.plural(one["apiVersion"], one["kind"])
        except Rejected as error:
            unknown.add(str(error))
            continue
        namespace = one.get("metadata", {}).get("namespace", NAMESPACE)
        verbs: tuple[str, ...] = ("get", "create", "patch")
        # What is pruned: never what holds data.
        if one in environment.rest and namespace == NAMESPACE:
            verbs += ("delete",)
        if one["kind"] != "Secret":
            wanted |= {(namespace, group, plural, verb) for verb in verbs}
    wanted |= {(NAMESPACE, group, resource, verb) for group, resource, verbs in _OF_THE_COMMAND for verb in verbs}

    def refused(rule: tuple[str, str, str, str]) -> str | None:
        namespace, group, name, verb = rule
        resource, _, subresource = name.partition("/")
        attributes = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes | ({"subresource": subresource} if subresource else {})},
        }
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return (
            None if answer["status"]["allowed"] else f"you may not {verb} {name}{group and '.' + group} in {namespace}"
        )

    return [*sorted(unknown), *filter(None, in_parallel(refused, sorted(wanted)))]


def _secrets(cluster: Cluster, environment: Environment) -> Iterator[str]:
    for name in sorted(_secret_names(environment) - _rendered_secrets(environment).keys()):
        try:
            if cluster.get("v1", "Secret", name) is None:
                yield (
                    f"the Secret {name} is not in the namespace {NAMESPACE}: kubectl apply -k the data folder of the "
                    "environment makes it, or what it is made from"
                )
        except Rejected as error:
            yield f"the Secret {name} cannot be read: {error}"


def _secret_names(environment: Environment) -> set[str]:
    text = json.dumps([*environment.functions, environment.migration])
    return set(re.findall(r'"secretRef": {"name": "([^"]+)"', text))


def _dry_run(cluster: Cluster, environment: Environment) -> list[str]:
    """What the API server and its webhooks say of each object."""

    def refused(manifest: Object) -> str | None:
        try:
            cluster.apply(manifest, dry_run=True)
        except Rejected as error:
            return f"{named(manifest)}: {error}"
        return None

    return [problem for problem in in_parallel(refused, environment.objects) if problem]


def _image(cluster: Cluster, environment: Environment, progress: Progress) -> list[str]:
    """Whether the cluster can pull the image, and what the image says of its settings and secrets."""
    name = f"check-{uuid.uuid4().hex[:8]}"
    job = jobs.derived(_with_settings(environment), name, ["python", "-m", "knative.release.inside", "settings"])
    try:
        told = json.loads(jobs.run(cluster, job, progress, lambda: None).splitlines()[-1])
    except jobs.JobFailed as error:
        return [f"{environment.image}: {error}"]
    except (ValueError, IndexError):
        return [f"{environment.image}: it is none of this product: it says nothing of its settings"]
    finally:
        cluster.delete(job)
    # Secrets that the environment brings along are not in the cluster yet, but here.
    found = inside.problems(_values(environment)) if _rendered_secrets(environment) else told["problems"]
    return [f"settings: {problem}" for problem in found]


def _rendered_secrets(environment: Environment) -> dict[str, dict[str, str]]:
    return {one["metadata"]["name"]: one["data"] for one in environment.foundation if one["kind"] == "Secret"}


def _values(environment: Environment) -> dict[str, str]:
    """The settings of the migration Job, with secrets."""
    (container,) = _with_settings(environment)["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    for data in _rendered_secrets(environment).values():
        values |= {name: base64.b64decode(value).decode() for name, value in data.items()}
    return values


def _with_settings(environment: Environment) -> Object:
    """The migration Job with the settings themselves, as what they come from may not be in the cluster yet."""
    job = copy.deepcopy(environment.migration)
    maps = {one["metadata"]["name"]: one["data"] for one in environment.foundation if one["kind"] == "ConfigMap"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    literals: dict[str, str] = {}
    for source in list(container.get("envFrom", ())):
        if "configMapRef" in source:
            literals |= maps[source["configMapRef"]["name"]]
            container["envFrom"].remove(source)
        elif source["secretRef"]["name"] in _rendered_secrets(environment):
            container["envFrom"].remove(source)
    kept = []
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            literals[variable["name"]] = maps[reference["name"]][reference["key"]]
        else:
            kept.append(variable)
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in literals.items())]
    return job
