"""Deploy a release, starting with a tenth of the traffic: `aegis deploy`."""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from knative.kubernetes import jobs
from knative.kubernetes.cluster import Cluster, Object, Rejected
from knative.kubernetes.overlays import Environment
from knative.release import checks, gateway, records, rollout
from knative.release.gate import Gate
from knative.release.lease import Lease
from knative.release.records import Release
from knative.release.rollout import Check
from knative.terminal import Progress, Refused
from shared.runtime.manifests import NAMESPACE
from shared.runtime.resource_names import function_name

SHARES = (10, 50, 100)
LOOK_SECONDS = 5.0
BLIND_SECONDS = 60.0
"""Prometheus finds new pods within this time."""
_BEFORE_TRAFFIC = ("checked", "prepares", "migrates")


def deploy(
    cluster: Cluster, environment: Environment, tag: str, *, gate: Gate | None, hold: int, progress: Progress
) -> Release:
    """Deploy an environment and return the new live release.

    Args:
        gate: None to check no alerts.
        hold: seconds to watch each share of the traffic.

    Raises:
        Refused: the release was not deployed, and the previous state is restored.
    """
    if problems := checks.problems(cluster, environment, gate, progress):
        raise Refused(
            "\n".join([f"Nothing was changed. Problems ({len(problems)}):", *(f"- {one}" for one in problems)])
        )
    with interruptible(), Lease(cluster, progress) as lease:
        kept = records.releases(cluster)
        finish_interrupted(cluster, kept, lease.check, progress)
        live = live_one(kept)
        release = records.begin(kept[0].number + 1 if kept else 1, tag, environment.image, environment.name)
        release.before = rollout.revisions_now(cluster)
        release.objects = [*environment.functions, *environment.rest]
        records.save(cluster, release)
        progress.say(
            f"{release.name} starts"
            + (f", replacing {live.name if live else 'the running revisions'}" if release.before else "")
        )
        try:
            _bring(cluster, environment, release, gate=gate, hold=hold, check=lease.check, progress=progress)
        except BaseException as error:
            why = _reason(error)
            with undisturbed():
                progress.say(why)
                raise Refused(f"{_undo(cluster, release, live, gate, progress)}\n{why}") from error
        release.state, release.step, release.finished = "complete", "complete", records.now()
        records.save(cluster, release)
        if live:
            rollout.prune(cluster, live, release, progress)
        _forget(cluster, kept, progress)
        progress.say(f"{release.name} is live")
        return release


def _bring(
    cluster: Cluster,
    environment: Environment,
    release: Release,
    *,
    gate: Gate | None,
    hold: int,
    check: Check,
    progress: Progress,
) -> None:
    def step(name: str) -> None:
        release.step = name
        records.save(cluster, release)

    step("prepares")
    for one in environment.foundation:
        cluster.apply(one)
    rollout.wait_for_servers(cluster, [*environment.prepared, *environment.foundation], check, progress)
    rollout.early(cluster, release)
    progress.say("settings are applied and servers are ready")

    step("migrates")
    migration = environment.migration
    migration["metadata"]["name"] = f"migrate-r{release.number}"
    cluster.delete(migration)
    release.schema = json.loads(jobs.run(cluster, migration, progress, check).splitlines()[-1])["schema"]
    progress.say(f"the database has schema {release.schema}")

    step("starts")
    rollout.start(cluster, release, check, progress)
    url = f"http://{rollout.NEXT}-{{service}}.{NAMESPACE}.svc.cluster.local"
    names = [function_name(one["metadata"]["name"]) for one in environment.functions]
    command = ["python", "-m", "knative.release.inside", "smoke", *names]
    smoke = jobs.derived(migration, f"smoke-r{release.number}", command, FUNCTION_URL=url)
    progress.say(jobs.run(cluster, smoke, progress, check).splitlines()[-1])
    rollout.send_gateway_key(cluster, release, check, progress)

    # Without a gate nothing watches the shares, so all traffic moves at once.
    for percent in SHARES if release.before and gate else (100,):
        step(f"{percent} % of the traffic")
        rollout.shift(cluster, release, percent, check, progress)
        progress.say(f"{percent} % of the traffic")
        if gate and release.before:
            _watch(gate, release, hold, check, progress)

    step("relay, dispatcher and routes")
    rollout.late(cluster, release, check, progress)
    progress.say("relay, dispatcher and routes are updated")

    step("verifies")
    for one in environment.rest:
        if one["kind"] == "Gateway":
            _wait_for_answers(cluster, one, check, progress)


def _watch(gate: Gate, release: Release, hold: int, check: Check, progress: Progress) -> None:
    """Watch the alert rules for `hold` seconds.

    Raises:
        Refused: an alert fires, or Prometheus has no metrics of the new revisions.
    """
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < hold or not gate.sees(release.number):
        check()
        if elapsed > hold + BLIND_SECONDS:
            raise Refused("Prometheus has no metrics of the new revisions, so alerts cannot be checked for them.")
        progress.wait(f"watching the alert rules, {max(0, hold - int(elapsed)) // 10 * 10} s more")
        time.sleep(LOOK_SECONDS)
        if alerts := gate.alerts(release.number, max(15, hold)):
            raise Refused("; ".join(map(str, alerts[:5])))


def _wait_for_answers(cluster: Cluster, gateway_: Object, check: Check, progress: Progress) -> None:
    deadline = time.monotonic() + rollout.TRAFFIC_SECONDS
    while problems := gateway.problems(cluster, gateway_):
        check()
        if time.monotonic() > deadline:
            raise Refused("; ".join(problems))
        progress.wait(f"waiting for the gateway: {problems[0]}")
        time.sleep(rollout.POLL_SECONDS)
    progress.say("the gateway answers as it should")


def _undo(cluster: Cluster, release: Release, live: Release | None, gate: Gate | None, progress: Progress) -> str:
    """Restore the previous state and return what happened."""
    step = release.step
    try:
        if step not in _BEFORE_TRAFFIC:
            rollout.go_back(cluster, release, live, lambda: None, progress)
        release.state, release.finished = "failed", records.now()
        records.save(cluster, release)
    except (Refused, Rejected) as error:
        return (
            f"{release.name} FAILED, AND THE PREVIOUS STATE WAS NOT RESTORED: {error}\n"
            "Run aegis rollback as soon as the cluster answers: it first reverts this release."
        )
    told = f"{release.name} failed at the step: {step}. "
    if step in _BEFORE_TRAFFIC:
        return told + "It received no traffic."
    told += (
        f"The traffic is back on {live.name if live else 'the previous revisions'}."
        if release.before
        else "It was removed."
    )
    if gate:
        try:
            requests, failed = gate.requests(release.number)
            told += f" It answered {requests} requests, {failed} of them with a 5xx."
        except Refused as error:
            told += f" The number of requests that it answered is unknown: {error}"
    return told


def finish_interrupted(cluster: Cluster, kept: Sequence[Release], check: Check, progress: Progress) -> None:
    """Revert a release whose command was killed."""
    for release in kept:
        if release.state == "under way":
            progress.say(f"{release.name} of {release.who} was interrupted at: {release.step}; reverting it")
            if release.step not in _BEFORE_TRAFFIC:
                rollout.go_back(cluster, release, live_one(kept), check, progress)
            release.state, release.finished = "failed", records.now()
            records.save(cluster, release)


def live_one(kept: Sequence[Release]) -> Release | None:
    """Return the live release: the newest one that completed and was not rolled back."""
    return next((release for release in kept if release.state == "complete"), None)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP do what Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C, so that moving the traffic back is not interrupted."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget(cluster: Cluster, kept: Sequence[Release], progress: Progress) -> None:
    """Delete the records of old releases, and ConfigMaps that only those releases used."""
    old = kept[records.KEPT - 1 :]
    for release in old:
        records.forget(cluster, release)
    if not old:
        return
    used = json.dumps([release.objects for release in records.releases(cluster)])
    for one in cluster.list("v1", "ConfigMap"):
        name = one["metadata"]["name"]
        if name.startswith("user-service-config-") and f'"{name}"' not in used:
            cluster.delete(one | {"apiVersion": "v1", "kind": "ConfigMap"})
            progress.say(f"deleted ConfigMap {name}, which no kept release uses")


def _reason(error: BaseException) -> str:
    match error:
        case KeyboardInterrupt():
            return "Interrupted."
        case Rejected():
            return f"The API server refused a request: {error}"
        case Refused():
            return str(error)
    return f"Unexpected error: {type(error).__name__}: {error}"
