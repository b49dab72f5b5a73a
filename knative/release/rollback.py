"""Restore an earlier release, all functions together: `aegis rollback`."""

import time

from knative.kubernetes.cluster import Cluster, in_parallel
from knative.kubernetes.overlays import revision
from knative.release import records, rollout
from knative.release.deploy import finish_interrupted, interruptible, live_one
from knative.release.lease import Lease
from knative.release.records import Release
from knative.terminal import Progress, Refused


def rollback(cluster: Cluster, wanted: str | None, progress: Progress) -> Release:
    """Roll back and return the release that is now live.

    Args:
        wanted: the number or tag of a release; None for the one before the live release.
    """
    if not records.releases(cluster):
        raise Refused("Nothing was changed. No release has been deployed with aegis deploy.")
    with interruptible(), Lease(cluster, progress) as lease:
        kept = records.releases(cluster)
        was_interrupted = any(release.state == "under way" for release in kept)
        finish_interrupted(cluster, kept, lease.check, progress)
        live = live_one(kept)
        if live is None:
            raise Refused("Nothing to roll back to: aegis deploy has not completed any release in this cluster.")
        if was_interrupted and wanted is None:
            return live
        target = _target(kept, live, wanted)
        _check_revisions(cluster, target)
        started = time.monotonic()
        rollout.put_in_effect(cluster, target, live, lease.check, progress)
        for release in kept:
            if release.number > target.number and release.state == "complete":
                release.state, release.finished = "rolled back", records.now()
                records.save(cluster, release)
        target.state = "complete"
        records.save(cluster, target)
        progress.say(f"{target.name} is live again, after {time.monotonic() - started:.1f} s")
        return target


def _target(kept: list[Release], live: Release, wanted: str | None) -> Release:
    able = [release for release in kept if release.state in ("complete", "rolled back")]
    if wanted is None:
        found = next((release for release in able if release.number < live.number), None)
    else:
        found = next((release for release in able if wanted in (str(release.number), release.tag)), None)
    if found is None:
        names = ", ".join(f"{release.number} ({release.tag})" for release in able) or "none"
        raise Refused(
            f"Nothing was changed. There is no {f'release {wanted}' if wanted else 'earlier release'} to roll back to. "
            f"Available: {names}."
        )
    return found


def _check_revisions(cluster: Cluster, target: Release) -> None:
    # Functions that a later release has deleted are created again.
    there = rollout.traffic_now(cluster)
    functions = [one for one in rollout.functions_of(target) if one["metadata"]["name"] in there]
    names = [revision(function, target.number) for function in functions]
    found = in_parallel(lambda name: cluster.get(rollout.SERVING, "Revision", name) is not None, names)
    gone = [name for name, is_there in zip(names, found, strict=True) if not is_there]
    if gone:
        raise Refused(
            f"Nothing was changed. Knative has deleted {len(gone)} revisions of {target.name}, such as {gone[0]}.\n"
            f"Deploy it again: aegis deploy {target.tag} --environment {target.environment}"
        )
