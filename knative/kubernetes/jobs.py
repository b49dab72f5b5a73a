"""Jobs that run in the cluster in the image of a release."""

import contextlib
import copy
import time
from collections.abc import Callable

from knative.kubernetes.cluster import Cluster, Object, Rejected
from knative.terminal import Progress, Refused

SECONDS = 300
"""Time limit of all Jobs but the migration, whose manifest has its own."""
POLL_SECONDS = 1.0
LOG_LINES = 40
"""Lines of log shown if a Job failed. RESULT_LINES applies if it succeeded."""
RESULT_LINES = 1000
_LOG_SECONDS = 10.0
"""Read the log this long before Kubernetes ends an overdue Job and deletes its pod with the log."""
STUCK_SECONDS = 20.0
"""An image pull can fail once and succeed a moment later."""

_STUCK = {
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "InvalidImageName": "the name of its image is invalid",
    "ErrImageNeverPull": "its image is not on the node",
    "CreateContainerConfigError": "its settings or secrets are missing",
    "CreateContainerError": "its container cannot be created",
}


class JobFailed(Refused):
    """A Job failed. The message has the reason and the end of the log."""


def derived(migration: Object, name: str, command: list[str], **variables: str) -> Object:
    """Return a Job with the image, settings and secrets of the migration, but without the owner's database login."""
    job = copy.deepcopy(migration)
    job["metadata"]["name"] = name
    job["spec"]["backoffLimit"] = 0
    job["spec"]["activeDeadlineSeconds"] = SECONDS
    template = job["spec"]["template"]
    template.setdefault("metadata", {})["labels"] = {"app": "release-check"}
    (container,) = template["spec"]["containers"]
    container["command"] = command
    container["env"] = [one for one in container.get("env", ()) if not one["name"].startswith("DB_OWNER")]
    container["env"].extend({"name": variable, "value": value} for variable, value in variables.items())
    return job


def run(cluster: Cluster, job: Object, progress: Progress, check: Callable[[], None]) -> str:
    """Run a Job to its end and return its log.

    Args:
        check: called repeatedly while the Job runs; can raise.

    Raises:
        JobFailed: the Job failed or cannot start.
    """
    name = job["metadata"]["name"]
    cluster.apply(job)
    seconds = job["spec"]["activeDeadlineSeconds"]
    deadline = time.monotonic() + seconds - _LOG_SECONDS
    stuck_since = 0.0
    while True:
        check()
        live = cluster.live(job)
        if live is None:
            raise JobFailed(f"The Job {name} has no result: it was deleted while it was running.")
        status = live.get("status", {})
        pods = cluster.list("v1", "Pod", f"job-name={name}")
        if status.get("succeeded"):
            return _log(cluster, pods, RESULT_LINES)
        reason = stuck(pods)
        stuck_since = (stuck_since or time.monotonic()) if reason else 0.0
        failed = any(one["type"] == "Failed" and one["status"] == "True" for one in status.get("conditions", ()))
        if failed or time.monotonic() > deadline or (reason and time.monotonic() - stuck_since > STUCK_SECONDS):
            why = reason or ("it failed" if failed else f"it did not end within {seconds} s")
            log = _log(cluster, pods)
            # Its pod must not run on when nobody waits for it any more.
            cluster.delete(job)
            raise JobFailed(f"The Job {name} has no result: {why}." + (f" Its log ends with:\n{log}" if log else ""))
        progress.wait(
            f"Job {name} " + (f"waits: {reason}" if reason else f"runs {_newest_line(cluster, pods)}").rstrip()
        )
        time.sleep(POLL_SECONDS)


def stuck(pods: list[Object]) -> str:
    """Return why a container of these pods cannot start if waiting does not help, or an empty string."""
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", ()):
            waiting = container["state"].get("waiting", {})
            if waiting.get("reason") in _STUCK:
                return f"{_STUCK[waiting['reason']]} ({waiting.get('message', waiting['reason'])})"
    return ""


def _newest_line(cluster: Cluster, pods: list[Object]) -> str:
    """Return the last line of a running Job's log, or an empty string if the log cannot be read now."""
    with contextlib.suppress(Rejected):
        return _log(cluster, pods, 1)
    return ""


def _log(cluster: Cluster, pods: list[Object], lines: int = LOG_LINES) -> str:
    started = [pod for pod in pods if pod.get("status", {}).get("containerStatuses", [{}])[0].get("containerID")]
    if not started:
        return ""
    newest = max(started, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    container = newest["spec"]["containers"][0]["name"]
    return cluster.logs(newest["metadata"]["name"], container, lines).strip()
