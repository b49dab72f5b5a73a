"""Apply what needs a cluster administrator, before the first release and when `deploy` asks for it: `aegis prepare`."""

from knative.kubernetes.cluster import Cluster, named
from knative.kubernetes.overlays import OVERLAYS, Environment, render
from knative.terminal import Progress, Refused

ACCESS = OVERLAYS.parent / "base" / "access"


def prepare(cluster: Cluster, environment: Environment, progress: Progress) -> list[str]:
    """Apply the permissions of releases and the objects that releases must not change. Return their names.

    Raises:
        Refused: a Secret of the environment is empty.
    """
    for one in environment.prepared:
        if one["kind"] == "Secret" and not all(one.get("data", {"": ""}).values()):
            raise Refused(f"Nothing was changed. The {named(one)} has no values. Write them with make secrets.")
    applied = [*render(ACCESS), *environment.prepared]
    for one in applied:
        progress.wait(f"applying {named(one)}")
        cluster.apply(one)
    return list(dict.fromkeys(map(named, applied)))
