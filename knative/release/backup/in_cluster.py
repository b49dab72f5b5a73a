"""The commands of backups in a cluster: in a pod as the CronJob's own, which has the store and the key."""

import copy
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from knative.release import jobs
from knative.release.cluster import Cluster, Object, Rejected
from knative.release.overlays import KUBECTL
from knative.release.progress import Progress
from knative.release.refused import Refused
from shared.manifests import NAMESPACE

NAME = "backup"
KEPT_SECONDS = 86_400
"""For who reads the log of one that was left alone."""


def run(context: str | None, command: str, arguments: list[str], identity: str, progress: Progress) -> str:
    """Runs a command of `aegis` in a cluster; returns what it printed.

    Args:
        context: the kube context; None for the current one.
        identity: a file with the age identity that opens backups, or nothing where none is needed. Only the standard
            input of the pod gets it: no object of the cluster holds it.

    Raises:
        Refused: the cluster has no backups, or the command failed there; with its log.
    """
    cluster = Cluster(context)
    try:
        # The drill's own, where the environment has it: its pod may have more memory.
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
        spec["template"]["spec"]["containers"][0]["args"] = [
            command,
            *arguments,
            *(["--identity", "-"] if identity else []),
        ]
        if identity:
            spec["template"]["spec"]["containers"][0] |= {"stdin": True, "stdinOnce": True}
        job: Object = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"{command}-{datetime.now(UTC):%Y%m%d-%H%M%S}"},
            "spec": spec,
        }
        if of_its_own:
            # As `kubectl create job --from` does: its success is one of the CronJob's, which an alert looks at.
            owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": command, "uid": of_its_own["metadata"]["uid"]}
            job["metadata"]["ownerReferences"] = [owner | {"controller": True}]
    except Rejected as error:
        raise Refused(f"Nothing was changed. The API server refuses: {error}") from error
    name = job["metadata"]["name"]
    progress.say(f"Job {name} in {cluster.context}; it goes on if this command is ended")
    try:
        give = _Identity(cluster, job, Path(identity).read_text()) if identity else lambda: None
        return jobs.run(cluster, job, progress, give)
    except Rejected as error:
        raise Refused(
            f"The API server refuses: {error}\nThe Job may run all the same. Look before you try again: "
            f"kubectl -n {NAMESPACE} logs -f job/{name}"
        ) from error


class _Identity:
    """Writes an identity to the standard input of a Job's pod, once, as soon as the pod runs."""

    def __init__(self, cluster: Cluster, job: Object, text: str) -> None:
        self._cluster, self._name, self._text = cluster, job["metadata"]["name"], text
        self._container = job["spec"]["template"]["spec"]["containers"][0]["name"]
        self._is_given = False

    def __call__(self) -> None:
        if self._is_given:
            return
        pods = self._cluster.list("v1", "Pod", f"job-name={self._name}")
        running = [pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") == "Running"]
        if not running:
            return
        self._is_given = True
        attach = [
            str(KUBECTL),
            "--context",
            self._cluster.context,
            "--namespace",
            NAMESPACE,
            "attach",
            "--stdin",
            "--quiet",
        ]
        done = subprocess.run(
            [*attach, running[0], "--container", self._container],
            input=self._text.rstrip() + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Refused(f"The pod {running[0]} does not get the identity: {done.stderr.strip()}")
