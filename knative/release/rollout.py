"""Move the functions of a cluster from one release to another: revisions, traffic and related objects."""

import copy
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from knative.kubernetes import jobs
from knative.kubernetes.cluster import Cluster, Key, Object, Rejected, condition, in_parallel, key, named
from knative.kubernetes.overlays import PREPARED, is_function, revision
from knative.release.records import LABEL, Release
from knative.terminal import Progress, Refused

SERVING = "serving.knative.dev/v1"
ROUTES = "gateway.networking.k8s.io/v1"
START_SECONDS = 300.0
"""For the first pod of each new revision, and for servers. Nodes may have to be added first."""
STARTING_AT_ONCE = 12
"""Limits the load that starting pods put on small nodes and on the database."""
TRAFFIC_SECONDS = 120.0
POLL_SECONDS = 1.0
NEXT, PREVIOUS = "next", "previous"
"""Tags of revisions without traffic. `next` lets a new revision be called before it has traffic, as next-login instead
of login; `previous` marks the revision to roll back to. A tagged revision keeps its pods, like one with traffic."""

LATE = frozenset({"Deployment", "CronJob", "Trigger", "PingSource", "HTTPRoute"})
"""Kinds that call functions or work beside them. They are applied only once all functions run."""
_ROUTES_FIRST = ("HTTPRoute", "Trigger", "PingSource", "CronJob")
# Reasons that can resolve themselves: nodes are added, images are pulled again.
_PATIENT = frozenset({"", "Deploying", "Unschedulable", "ContainerCreating", "PodInitializing", "Resolving", "Queued"})
_WITH_READY = frozenset({"Cluster", "Kafka", "ExternalSecret"})
"""Kinds of operators whose condition Ready says that their servers or secrets exist."""

_TAKEN = frozenset({"Accepted", "ResolvedRefs"})
"""Conditions of an HTTPRoute that say whether the gateway serves it in its current form."""

Check = Callable[[], None]
Traffic = Mapping[str, int]
"""Percent of the traffic by revision."""


def functions_of(release: Release) -> list[Object]:
    return [one for one in release.objects if is_function(one)]


def service(function: Object, number: int, traffic: Traffic, *, is_live: bool) -> Object:
    """Return a Knative Service whose newest revision is that of a release.

    Args:
        is_live: whether the release has all the traffic. Until then its revisions have the tag `next`.
    """
    manifest = copy.deepcopy(function)
    metadata = manifest["spec"]["template"]["metadata"]
    metadata["name"] = revision(function, number)
    metadata.setdefault("labels", {})[LABEL] = str(number)
    manifest["spec"]["traffic"] = _targets(traffic, number, is_live=is_live)
    return manifest


def _targets(traffic: Traffic, number: int, *, is_live: bool) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = []
    for name, percent in traffic.items():
        is_new = name.endswith(f"-r{number}")
        # A function without an earlier revision has all its traffic from the start, but still needs the tag.
        tag = NEXT if is_new and not is_live else PREVIOUS if is_live and percent == 0 else ""
        targets.append({"revisionName": name, "percent": percent} | ({"tag": tag} if tag else {}))
    return targets


def traffic_now(cluster: Cluster) -> dict[str, dict[str, int]]:
    """Return the current traffic of each Knative Service."""
    return {one["metadata"]["name"]: traffic_of(one) for one in cluster.list(SERVING, "Service")}


def traffic_of(function: Object) -> dict[str, int]:
    """Return the traffic in the status of a Knative Service, without revisions that have none."""
    return {
        target["revisionName"]: target["percent"]
        for target in function.get("status", {}).get("traffic", ())
        if target.get("percent")
    }


def revisions_now(cluster: Cluster) -> dict[str, str]:
    """Return the revision with the most traffic of each Knative Service that has traffic."""
    return {
        name: max(percents, key=lambda one: percents[one])
        for name, percents in traffic_now(cluster).items()
        if percents
    }


def start(cluster: Cluster, release: Release, check: Check, progress: Progress) -> None:
    """Create the revisions of a release, each with a pod and no traffic, and wait until all are ready.

    Raises:
        Refused: a revision does not start. The message has the end of its log.
    """
    shares = _shares(release, 0)
    queue = functions_of(release)
    count = len(queue)
    starting: dict[str, float] = {}
    """The deadline of each revision that is not ready yet."""
    while queue or starting:
        check()
        while queue and len(starting) < STARTING_AT_ONCE:
            function = queue.pop(0)
            share = shares[function["metadata"]["name"]]
            cluster.apply(service(function, release.number, share, is_live=False))
            starting[revision(function, release.number)] = time.monotonic() + START_SECONDS
        found = {
            one["metadata"]["name"]: condition(one)
            for one in cluster.list(SERVING, "Revision", f"{LABEL}={release.number}")
        }
        for name, deadline in list(starting.items()):
            state = found.get(name, {})
            is_over = state.get("status") == "False" and state.get("reason", "") not in _PATIENT
            if state.get("status") == "True":
                del starting[name]
            elif is_over or time.monotonic() > deadline:
                why = f"{state.get('reason', 'Timeout')}: {state.get('message', f'after {START_SECONDS:.0f} s')}"
                raise Refused(f"{name} did not start. {why}{_last_words(cluster, name)}")
        progress.wait(f"{count - len(queue) - len(starting)} of {count} new revisions are ready")
        if starting:
            time.sleep(POLL_SECONDS)
    _wait_for_traffic(cluster, shares, check, progress)
    progress.say(f"{count} new revisions are ready, without traffic")


def shift(cluster: Cluster, release: Release, percent: int, check: Check, progress: Progress) -> None:
    """Move this share of every function's traffic to a release, and wait until it has arrived."""
    shares = _shares(release, percent)
    is_live = percent == 100
    _move(cluster, {name: _targets(traffic, release.number, is_live=is_live) for name, traffic in shares.items()})
    _wait_for_traffic(cluster, shares, check, progress)


def _move(cluster: Cluster, targets: Mapping[str, list[Object]]) -> None:
    """Set the traffic targets of Knative Services."""

    def move(name: str) -> None:
        function = {"apiVersion": SERVING, "kind": "Service", "metadata": {"name": name}}
        cluster.set(function, {"spec": {"traffic": targets[name]}})

    in_parallel(move, targets)


def _flipped(function: Object, revision_: str) -> list[Object]:
    """Return targets with all traffic on one revision. The tags stay, which saves Knative a third of the time."""
    kept = [
        target
        for target in function["spec"].get("traffic", ())
        # A revision without traffic or this tag may never have started.
        if "revisionName" in target and (target.get("percent") or target.get("tag") == PREVIOUS)
    ]
    if revision_ not in {target["revisionName"] for target in kept}:
        kept.append({"revisionName": revision_})
    return [target | {"percent": 100 if target["revisionName"] == revision_ else 0} for target in kept]


def send_gateway_key(cluster: Cluster, release: Release, check: Check, progress: Progress) -> None:
    """Make the gateway send its key on the existing routes of functions that expect it in this release.

    Nothing else in these routes changes until those of the release are applied. Older functions ignore the key.

    Raises:
        Refused: the gateway rejects a route; all routes are restored.
    """
    filters = [one for one in release.objects if one["kind"] == "HTTPRouteFilter" and credential_of(one)]
    if not filters:
        return
    in_parallel(cluster.apply, filters)
    names = {one["metadata"]["name"] for one in filters}
    wanted = {one["metadata"]["name"]: _filters(one, names) for one in release.objects if one["kind"] == "HTTPRoute"}
    before: dict[str, list[Object]] = {}
    after: dict[str, list[Object]] = {}
    for route in cluster.list(ROUTES, "HTTPRoute"):
        name, rules = route["metadata"]["name"], route["spec"]["rules"]
        had = _filters(route, names)
        if missing := [added for key_, added in wanted.get(name, {}).items() if key_ not in had]:
            before[name] = rules
            after[name] = [rule | {"filters": [*rule.get("filters", ()), *missing]} for rule in rules]
    # One route first: a route that the gateway rejects answers 500.
    for some in (list(after)[:1], list(after)[1:]):
        try:
            _set_rules(cluster, {name: after[name] for name in some})
            _wait_for_gateway(cluster, some, check, progress)
        except BaseException:
            _set_rules(cluster, {name: before[name] for name in some})
            raise
    if after:
        progress.say(f"the gateway sends its key to {len(after)} functions")


def credential_of(route_filter: Object) -> str:
    """Return the Secret whose credential an HTTPRouteFilter adds to requests, or an empty string."""
    injection = route_filter["spec"].get("credentialInjection")
    return str(injection["credential"]["valueRef"]["name"]) if injection else ""


def _filters(route: Object, names: Collection[str]) -> dict[str, Object]:
    """Return the HTTPRouteFilters of a route that have one of these names."""
    filters = [one for rule in route["spec"]["rules"] for one in rule.get("filters", ()) if "extensionRef" in one]
    return {name: one for one in filters if (name := one["extensionRef"]["name"]) in names}


def _set_rules(cluster: Cluster, rules: Mapping[str, list[Object]]) -> None:
    def change(name: str) -> None:
        route = {"apiVersion": ROUTES, "kind": "HTTPRoute", "metadata": {"name": name}}
        cluster.set(route, {"spec": {"rules": rules[name]}})

    in_parallel(change, rules)


def _wait_for_gateway(cluster: Cluster, routes: Collection[str], check: Check, progress: Progress) -> None:
    """
    Raises:
        Refused: the gateway rejects one of these routes, or takes too long.
    """
    deadline = time.monotonic() + TRAFFIC_SECONDS
    waiting = {*routes}
    while waiting:
        check()
        for route in cluster.list(ROUTES, "HTTPRoute"):
            parents = route.get("status", {}).get("parents", ())
            told = [one for parent in parents for one in parent["conditions"] if one["type"] in _TAKEN]
            is_new = all(one["observedGeneration"] == route["metadata"]["generation"] for one in told)
            if told and is_new and (name := route["metadata"]["name"]) in waiting:
                if refused := [one for one in told if one["status"] != "True"]:
                    raise Refused(f"The gateway rejected HTTPRoute {name}: {refused[0]['message']}")
                waiting.remove(name)
        if waiting and time.monotonic() > deadline:
            raise Refused(f"The gateway has not accepted {', '.join(sorted(waiting))} after {TRAFFIC_SECONDS:.0f} s.")
        if waiting:
            progress.wait(f"waiting for the gateway to accept {len(waiting)} routes")
            time.sleep(POLL_SECONDS / 2)


def put_in_effect(cluster: Cluster, release: Release, instead_of: Release, check: Check, progress: Progress) -> None:
    """Restore a release in place of a later one, traffic first."""
    send_gateway_key(cluster, release, check, progress)
    shares = {one["metadata"]["name"]: {revision(one, release.number): 100} for one in functions_of(release)}
    there = {one["metadata"]["name"]: one for one in cluster.list(SERVING, "Service")}
    flipped = {name: _flipped(there[name], *shares[name]) for name in shares if name in there}
    _move(cluster, flipped)
    _wait_for_traffic(cluster, {name: shares[name] for name in flipped}, check, progress)
    progress.say(f"{release.name} has all the traffic")

    def restore(function: Object) -> None:
        cluster.apply(service(function, release.number, shares[function["metadata"]["name"]], is_live=True))

    in_parallel(restore, functions_of(release))
    _wait_for_traffic(cluster, shares, check, progress)
    early(cluster, release)
    late(cluster, release, check, progress)
    prune(cluster, instead_of, release, progress)


def early(cluster: Cluster, release: Release) -> None:
    """Apply what functions need and what monitors them."""
    # Records of older versions can contain kinds that releases must no longer change.
    others = LATE | PREPARED
    in_parallel(cluster.apply, [one for one in release.objects if one["kind"] not in others and not is_function(one)])


def late(cluster: Cluster, release: Release, check: Check, progress: Progress) -> None:
    """Apply what works beside the functions, wait until it is ready, and then apply the routes."""
    chosen = [one for one in release.objects if one["kind"] in LATE]
    in_parallel(cluster.apply, [one for one in chosen if one["kind"] != "HTTPRoute"])
    wait_for_servers(cluster, chosen, check, progress)
    in_parallel(cluster.apply, [one for one in chosen if one["kind"] == "HTTPRoute"])


def prune(cluster: Cluster, old: Release, new: Release, progress: Progress) -> None:
    """Delete what the new release no longer has: first what calls functions, then the rest."""
    kept: set[Key] = {key(one) for one in new.objects}
    gone = [one for one in old.objects if key(one) not in kept and one["kind"] not in PREPARED]
    for one in sorted(gone, key=lambda one: one["kind"] not in _ROUTES_FIRST):
        cluster.delete(one)
        progress.say(f"deleted {named(one)}, which is not part of {new.name}")


def wait_for_servers(cluster: Cluster, manifests: list[Object], check: Check, progress: Progress) -> None:
    """Wait until each server among these objects runs in its newest version.

    Raises:
        Refused: a server cannot start, or is not ready in time.
    """
    deadline = time.monotonic() + START_SECONDS
    stuck_since = 0.0
    watched = [one for one in manifests if one["kind"] in {"Deployment", "StatefulSet"} | _WITH_READY]
    while waiting := [one for one in watched if not _is_up(cluster.live(one))]:
        check()
        stuck = [f"{named(one)} cannot start: {why}" for one in waiting if (why := jobs.stuck(_pods_of(cluster, one)))]
        stuck_since = (stuck_since or time.monotonic()) if stuck else 0.0
        if stuck and time.monotonic() - stuck_since > jobs.STUCK_SECONDS:
            raise Refused(stuck[0])
        if time.monotonic() > deadline:
            names = ", ".join(map(named, waiting))
            raise Refused(
                f"{names}: not ready after {START_SECONDS:.0f} s{''.join(_why_not(cluster, one) for one in waiting)}"
            )
        progress.wait(f"waiting for {', '.join(map(named, waiting))}")
        watched = waiting
        time.sleep(POLL_SECONDS)


def go_back(cluster: Cluster, release: Release, target: Release | None, check: Check, progress: Progress) -> None:
    """Move the traffic of an unfinished release back to what had it before."""
    if target:
        put_in_effect(cluster, target, release, check, progress)
        return
    # What ran before was not deployed by aegis: its revisions are known, but not its manifests.
    shares = {name: {revision_: 100} for name, revision_ in release.before.items()}
    _move(cluster, {name: _targets(traffic, release.number, is_live=False) for name, traffic in shares.items()})
    _wait_for_traffic(cluster, shares, check, progress)
    in_parallel(cluster.delete, [one for one in functions_of(release) if one["metadata"]["name"] not in shares])


def _shares(release: Release, percent: int) -> dict[str, dict[str, int]]:
    """Return the traffic of each function's old and new revision. A new function has no old revision."""
    shares = {}
    for function in functions_of(release):
        name, new = function["metadata"]["name"], revision(function, release.number)
        old = release.before.get(name)
        shares[name] = {old: 100 - percent, new: percent} if old else {new: 100}
    return shares


def _wait_for_traffic(cluster: Cluster, wanted: Mapping[str, Traffic], check: Check, progress: Progress) -> None:
    deadline = time.monotonic() + TRAFFIC_SECONDS
    while True:
        check()
        found = {one["metadata"]["name"]: one for one in cluster.list(SERVING, "Service")}
        waiting = [name for name, shares in wanted.items() if not _has_traffic(found.get(name), shares)]
        if not waiting:
            return
        if time.monotonic() > deadline:
            reason = condition(found.get(waiting[0], {"metadata": {}}), "RoutesReady").get(
                "message", "the reason is unknown"
            )
            raise Refused(f"The traffic of {', '.join(waiting)} did not move within {TRAFFIC_SECONDS:.0f} s: {reason}")
        progress.wait(f"the traffic of {len(wanted) - len(waiting)} of {len(wanted)} functions has moved")
        time.sleep(POLL_SECONDS / 2)


def _has_traffic(function: Object | None, shares: Traffic) -> bool:
    if function is None or condition(function, "RoutesReady").get("status") != "True":
        return False
    return traffic_of(function) == {name: percent for name, percent in shares.items() if percent}


def _is_up(manifest: Object | None) -> bool:
    if manifest is None:
        return False
    if manifest["kind"] in _WITH_READY:
        return condition(manifest).get("status") == "True"
    status, replicas = manifest.get("status", {}), manifest["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return status.get("observedGeneration") == manifest["metadata"]["generation"] and counts == [replicas] * 3


def _last_words(cluster: Cluster, revision_: str) -> str:
    """Return the end of the log of a revision's pod that has one."""
    for pod in cluster.list("v1", "Pod", f"serving.knative.dev/revision={revision_}"):
        for previous in (True, False):
            try:
                log = cluster.logs(pod["metadata"]["name"], pod["spec"]["containers"][0]["name"], 20, previous=previous)
            except Rejected:
                continue
            if log.strip():
                return f"\nIts log ends with:\n{log.strip()}"
    return ""


def _pods_of(cluster: Cluster, manifest: Object) -> list[Object]:
    labels = manifest["spec"].get("selector", {}).get("matchLabels", {})
    return cluster.list("v1", "Pod", ",".join(f"{name}={value}" for name, value in labels.items())) if labels else []


def _why_not(cluster: Cluster, manifest: Object) -> str:
    for pod in _pods_of(cluster, manifest):
        for container in pod.get("status", {}).get("containerStatuses", ()):
            if not container["ready"]:
                try:
                    log = cluster.logs(pod["metadata"]["name"], container["name"], 20)
                except Rejected as error:
                    log = str(error)
                return f"\nThe log of {pod['metadata']['name']} ends with:\n{log.strip()}"
    return ""
