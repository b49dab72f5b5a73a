"""Reports on the releases of a cluster: `aegis releases`, `aegis status`, `aegis diff`."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from knative.kubernetes.cluster import Cluster, Object, Rejected, condition, in_parallel, key, named
from knative.kubernetes.overlays import PREPARED, Environment, is_function
from knative.release import records, rollout
from knative.release.deploy import live_one
from knative.release.gateway import public_listener
from knative.release.records import LABEL
from knative.terminal import aligned
from shared.runtime.manifests import NAMESPACE

_OF_THE_SERVER = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "uid", "selfLink")


def releases(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the releases, newest first, with each one's current share of the traffic."""
    shares = list(rollout.traffic_now(cluster).values())
    return [
        {
            "release": release.number,
            "tag": release.tag,
            "state": release.state
            if release.state == "complete"
            else f"{release.state}, at: {release.step}".removesuffix(", at: complete"),
            "traffic": _percent(shares, release.number),
            "schema": release.schema,
            "environment": release.environment,
            "who": release.who,
            "started": release.started,
            "finished": release.finished,
            "image": release.image,
        }
        for release in records.releases(cluster)
    ]


def status(cluster: Cluster) -> list[dict[str, Any]]:
    """Return each function's traffic by revision, number of pods, readiness and address."""
    pods = [
        pod["metadata"]["labels"].get("serving.knative.dev/service")
        for pod in cluster.list("v1", "Pod", "serving.knative.dev/service")
        if condition(pod).get("status") == "True" and "deletionTimestamp" not in pod["metadata"]
    ]
    urls = dict(_urls(cluster))
    found = []
    for one in cluster.list(rollout.SERVING, "Service"):
        name, ready = one["metadata"]["name"], condition(one)
        is_ready = ready.get("status") == "True"
        found.append(
            {
                "function": name.replace("-", "_"),
                "traffic": rollout.traffic_of(one),
                "pods": pods.count(name),
                "ready": is_ready,
                "reason": "" if is_ready else ready.get("message") or "Knative has not processed it yet",
                "url": urls.get(name) or one.get("status", {}).get("url", ""),
            }
        )
    return found


def diff(cluster: Cluster, environment: Environment) -> dict[str, str]:
    """Return a unified diff (YAML) for each object that a deployment would change."""
    # The API server does no dry run in a namespace that does not exist yet.
    is_new = cluster.get("v1", "Namespace", NAMESPACE) is None

    def changed(manifest: Object) -> tuple[str, str]:
        live = cluster.live(manifest)
        try:
            then = manifest if is_new else cluster.apply(manifest, dry_run=True)
        except Rejected as error:
            return named(manifest), f"cannot be applied: {error}"
        return named(manifest), _difference(_told(live) if live else {}, _told(then))

    found = dict(in_parallel(changed, environment.objects))
    live_release = live_one(records.releases(cluster))
    wanted = {key(one) for one in environment.objects}
    for one in live_release.objects if live_release else ():
        if key(one) not in wanted and one["kind"] not in PREPARED:
            found[named(one)] = "will be deleted: not part of the environment"
    return {name: text for name, text in found.items() if text}


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Format rows as text in columns."""
    cells = [[column.upper() for column in columns], *([_text(row[column]) for column in columns] for row in rows)]
    return "\n".join(aligned(cells))


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{name} {percent} %" for name, percent in value.items()) or "-"
    return str(value) or "-"


def _percent(shares: Sequence[dict[str, int]], number: int) -> str:
    """Return the smallest and largest share of traffic over all functions."""
    own = [sum(percent for name, percent in one.items() if name.endswith(f"-r{number}")) for one in shares if one]
    least, most = (min(own), max(own)) if own else (0, 0)
    return f"{most} %" if least == most else f"{least} to {most} %"


def _urls(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield the method, host and path of each function with a route."""
    from shared.framework.http_function import PATH_PARAMETER  # heavy, and only this command needs it

    for gateway in cluster.list("gateway.networking.k8s.io/v1", "Gateway"):
        listener = public_listener(gateway)
        base = f"{'https' if listener['protocol'] == 'HTTPS' else 'http'}://{listener.get('hostname', '*')}"
        for route in cluster.list("gateway.networking.k8s.io/v1", "HTTPRoute"):
            for rule in route["spec"]["rules"]:
                match = rule.get("matches", [{}])[0]
                if "path" in match:
                    path = match["path"]["value"].replace(PATH_PARAMETER, "{id}")
                    yield route["metadata"]["name"], f"{match.get('method', 'ANY')} {base}{path}"


def _told(manifest: Object) -> Object:
    """Return an object without fields that the server manages and names that a release sets."""
    told = {name: value for name, value in manifest.items() if name != "status"}
    told["metadata"] = {name: value for name, value in manifest["metadata"].items() if name not in _OF_THE_SERVER}
    if is_function(manifest):
        metadata = manifest["spec"]["template"]["metadata"]
        labels = {name: value for name, value in metadata.get("labels", {}).items() if name != LABEL}
        template = manifest["spec"]["template"] | {"metadata": {**metadata, "labels": labels}}
        template["metadata"].pop("name", None)
        told["spec"] = {name: value for name, value in manifest["spec"].items() if name != "traffic"} | {
            "template": template
        }
    return told


def _difference(live: Object, then: Object) -> str:
    old, new = (yaml.safe_dump(one, allow_unicode=True).splitlines() if one else [] for one in (live, then))
    return "\n".join(difflib.unified_diff(old, new, "live", "then", lineterm="", n=2))
