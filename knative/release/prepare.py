"""What an administrator of the cluster applies before the first release, and when `deploy` asks for it."""

from knative.kubernetes.cluster import Cluster, named
from knative.kubernetes.overlays import OVERLAYS, Environment, render
from knative.terminal import Progress, Refused

ACCESS = OVERLAYS.parent / "base" / "access"


def prepare(cluster: Cluster, environment: Environment, progress: Progress) -> list[str]:
    """Applies the rights of releases, and what an environment has that no release may change; returns what that was.

    Raises:
        Refused: a Secret of the environment is empty.
    """
    for one in environment.prepared:
        if one["kind"] == "Secret" and not all(one.get("data", {"": ""}).values()):
            raise Refused(f"Nothing was changed. The {named(one)} has no values: make secrets writes them.")
    applied = [*render(ACCESS), *environment.prepared]
    for one in applied:
        progress.wait(f"applying {named(one)}")
        cluster.apply(one)
    return list(dict.fromkeys(map(named, applied)))
