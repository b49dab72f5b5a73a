"""The commands of backups in a cluster: in a pod as the CronJob's own, which has the store and the key."""

import copy
from datetime import UTC, datetime

from knative.release import jobs
from knative.release.cluster import Cluster, Object, Rejected
from knative.release.progress import Progress
from knative.release.refused import Refused
from shared.manifests import NAMESPACE

NAME = "backup"
KEPT_SECONDS = 86_400
"""For who reads the log of one that was left alone."""


def run(context: str | None, arguments: list[str], progress: Progress) -> str:
    """Runs `aegis` with these arguments in a cluster; returns what it printed.

    Args:
        context: the kube context; None for the current one.

    Raises:
        Refused: the cluster has no backups, or the command failed there; with its log.
    """
    cluster = Cluster(context)
    command = arguments[0]
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
        spec["template"]["spec"]["containers"][0]["args"] = arguments
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
        return jobs.run(cluster, job, progress, lambda: None)
    except Rejected as error:
        raise Refused(
            f"The API server refuses: {error}\nThe Job may run all the same. Look before you try again: "
            f"kubectl -n {NAMESPACE} logs -f job/{name}"
        ) from error
