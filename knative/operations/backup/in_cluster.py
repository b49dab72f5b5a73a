"""Run backup commands in a cluster, in a pod like that of the CronJob, which has the store and the keys."""

import copy
import subprocess
from contextlib import suppress
from datetime import UTC, datetime

from knative.kubernetes import jobs
from knative.kubernetes.cluster import Cluster, Object, Rejected
from knative.kubernetes.overlays import KUBECTL
from knative.operations.backup import identity
from knative.operations.backup.postgresql import pipe
from knative.terminal import Progress, Refused
from shared.runtime.manifests import NAMESPACE

NAME = "backup"
KEPT_SECONDS = 86_400
"""Keeps the log of a Job whose command was stopped."""


def run(
    context: str | None, command: str, arguments: list[str], identities: tuple[str, ...], progress: Progress
) -> str:
    """Run an `aegis` command in a cluster and return what it printed.

    Args:
        context: the kube context; None for the current one.
        identities: open backups; empty to only take and list them, or if the environment has its own.
            They only go to the pod's standard input, never into an object of the cluster or a log.

    Raises:
        Refused: the cluster has no backups, or the command failed there. Includes its log.
    """
    cluster = Cluster(context)
    try:
        # The drill can have its own CronJob, whose pod may have more memory.
        of_its_own = cluster.get("batch/v1", "CronJob", command)
        cron_job = of_its_own or cluster.get("batch/v1", "CronJob", NAME)
        if not cron_job:
            raise Refused(
                f"Nothing was changed. In the context {cluster.context} there is no CronJob {NAME}: "
                "deploy an environment that has the component backup."
            )
        spec = copy.deepcopy(cron_job["spec"]["jobTemplate"]["spec"])
        spec |= {"backoffLimit": 0, "ttlSecondsAfterFinished": KEPT_SECONDS}
        if command == "backups":
            spec["activeDeadlineSeconds"] = jobs.SECONDS
        (container,) = spec["template"]["spec"]["containers"]
        container["args"] = [command, *arguments]
        if identities:
            container["args"] += ["--identity", "-"]
            container["stdin"] = container["stdinOnce"] = True
        job: Object = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"{command}-{datetime.now(UTC):%Y%m%d-%H%M%S}"},
            "spec": spec,
        }
        if of_its_own:
            # Like `kubectl create job --from`: a success counts as one of the CronJob, which an alert watches.
            owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": command, "uid": of_its_own["metadata"]["uid"]}
            job["metadata"]["ownerReferences"] = [owner | {"controller": True}]
    except Rejected as error:
        raise Refused(f"Nothing was changed. The API server refused a request: {error}") from error
    name = job["metadata"]["name"]
    progress.say(f"Job {name} in {cluster.context}; it continues if this command is stopped")
    try:
        return jobs.run(cluster, job, progress, _Identities(cluster, job, identities) if identities else lambda: None)
    except Rejected as error:
        raise Refused(
            f"The API server refused a request: {error}\nThe Job may still be running. Check before you try again: "
            f"kubectl -n {NAMESPACE} logs -f job/{name}"
        ) from error


class _Identities:
    """Hand identities to the pod of a Job once, as soon as it runs."""

    def __init__(self, cluster: Cluster, job: Object, identities: tuple[str, ...]) -> None:
        self._cluster, self._job, self._identities = cluster, job, identities
        self._are_given = False

    def __call__(self) -> None:
        if self._are_given:
            return
        pods = self._cluster.list("v1", "Pod", f"job-name={self._job['metadata']['name']}")
        for pod in pods:
            if pod.get("status", {}).get("phase") == "Running":
                try:
                    hand_over(self._cluster.context, pod["metadata"]["name"], self._identities)
                except Refused:
                    self._cluster.delete(self._job)  # otherwise it waits for them until its deadline
                    raise
                self._are_given = True
                return


def hand_over(context: str, pod: str, identities: tuple[str, ...]) -> None:
    """Write identities to the standard input of a pod and wait until it has read them.

    Raises:
        Refused: the pod does not read them, or you do not have permission to attach to it.
    """
    command = [str(KUBECTL), "--context", context, "--namespace", NAMESPACE, "attach", "--stdin", "--quiet", pod]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as attached:
        with suppress(BrokenPipeError), pipe(attached.stdin) as to:  # a pod that has ended printed why
            to.write(" ".join(identities).encode() + b"\n")
        said = ""
        for line in pipe(attached.stdout):
            said += line.decode(errors="replace")
            if identity.TAKEN in said:
                attached.kill()  # otherwise it stays attached until the pod ends
                return
    raise Refused(f"Nothing was changed. The pod {pod} did not accept the identity: {said.strip()}")
