"""The releases that ran in a cluster: one ConfigMap per release, with everything that a rollback needs."""

import base64
import gzip
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from knative.kubernetes.cluster import Cluster, Object
from knative.release.lease import operator

KEPT = 10
"""Older records are deleted. Knative garbage-collects their revisions."""
LABEL = "aegis.example.com/release"
"""The label with the number of a release, on its record, revisions and Jobs."""

State = Literal["under way", "complete", "failed", "rolled back"]

_KIND = "aegis-release"


@dataclass
class Release:
    """One run of `aegis deploy`, and what it put into the cluster.

    Attributes:
        before: the revision of each Knative Service that had its traffic when this release began.
        objects: all its manifests, without revisions and secrets.
    """

    number: int
    tag: str
    image: str
    environment: str
    who: str
    started: str
    state: State = "under way"
    step: str = "checked"
    finished: str = ""
    schema: str = ""
    before: dict[str, str] = field(default_factory=dict)
    objects: list[Object] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return f"release {self.number} ({self.tag})"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def begin(number: int, tag: str, image: str, environment: str) -> Release:
    return Release(number, tag, image, environment, who=operator(), started=now())


def save(cluster: Cluster, release: Release) -> None:
    """Write the current state of a release."""
    told = asdict(release) | {"objects": None}
    packed = gzip.compress(json.dumps(release.objects).encode(), mtime=0)
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"release-{release.number}",
                "labels": {"app": _KIND, LABEL: str(release.number)},
            },
            "data": {"release": json.dumps(told, ensure_ascii=False)},
            "binaryData": {"objects": base64.b64encode(packed).decode()},
        }
    )


def releases(cluster: Cluster) -> list[Release]:
    """Return all recorded releases, newest first."""
    found = []
    for one in cluster.list("v1", "ConfigMap", f"app={_KIND}"):
        told = json.loads(one["data"]["release"])
        told["objects"] = json.loads(gzip.decompress(base64.b64decode(one["binaryData"]["objects"])))
        found.append(Release(**told))
    return sorted(found, key=lambda release: release.number, reverse=True)


def forget(cluster: Cluster, release: Release) -> None:
    cluster.delete({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"release-{release.number}"}})
