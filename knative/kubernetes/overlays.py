"""The objects of an environment: its overlay, rendered by kubectl, with the image that is released."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from knative.kubernetes.cluster import Object, key
from knative.terminal import Refused

OVERLAYS = Path(__file__).parents[1] / "overlays"
KUBECTL = Path(sys.executable).parent / "kubectl"

PREPARED = frozenset(
    {
        *("Namespace", "NetworkPolicy", "ServiceAccount", "ReferenceGrant"),
        *("Secret", "ExternalSecret", "PersistentVolumeClaim"),
        *("Cluster", "Pooler", "ScheduledBackup", "Kafka", "KafkaNodePool"),
        *("PodMonitor", "ServiceMonitor"),
    }
)
"""Kinds that an administrator applies (`aegis prepare`) and a release only reads: isolation, secrets, and custom
resources that operators turn into pods or requests, possibly with any Secret."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Environment:
    """The objects of an environment.

    Attributes:
        prepared: what an administrator applies before the release: see `PREPARED`. Includes Secrets with their values.
        foundation: what a release applies first: settings and servers. A rollback does not change it.
        migration: the Job that migrates the database to the schema of this image.
        functions: the Knative Services.
        rest: what comes after the functions: the relay, the dispatcher, routes, triggers, policies.
        image: the image of all these, with its tag or digest.
    """

    name: str
    prepared: list[Object]
    foundation: list[Object]
    migration: Object
    functions: list[Object]
    rest: list[Object]
    image: str

    @property
    def objects(self) -> list[Object]:
        """All objects that a release applies."""
        return [*self.foundation, *self.functions, *self.rest]


def environment(name: str, tag: str) -> Environment:
    """Render an environment with this tag or digest.

    Args:
        name: a folder in knative/overlays, or the path of a folder with the same layout.

    Raises:
        Refused: the environment does not exist or cannot be rendered, or the tag is malformed.
    """
    folder = Path(name) if "/" in name else OVERLAYS / name
    if not (folder / "migration" / "kustomization.yaml").is_file():
        known = ", ".join(sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml")))
        raise Refused(f"Nothing was changed. There is no environment {name}. Available: {known}.")
    if not (_TAG.fullmatch(tag) or _DIGEST.fullmatch(tag)):
        raise Refused(f"Nothing was changed. {tag} is neither an image tag nor a digest such as sha256:...")
    foundation = render(folder / "migration")
    everything = render(folder)
    repository = _repository(everything)
    image = f"{repository}{'@' if _DIGEST.fullmatch(tag) else ':'}{tag}"
    for one in [*foundation, *everything]:
        for pod in pods(one):
            for container in [*pod["containers"], *pod.get("initContainers", ())]:
                if _without_version(container["image"]) == repository:
                    container["image"] = image
    (migration,) = [one for one in foundation if one["kind"] == "Job"]
    first = {key(one) for one in foundation}
    later = [one for one in everything if key(one) not in first]
    return Environment(
        name=folder.name,
        prepared=[one for one in [*foundation, *later] if one["kind"] in PREPARED],
        foundation=[one for one in foundation if one is not migration and one["kind"] not in PREPARED],
        migration=migration,
        functions=[one for one in later if is_function(one)],
        rest=[one for one in later if not is_function(one) and one["kind"] not in PREPARED],
        image=image,
    )


def render(folder: Path) -> list[Object]:
    """Return the objects of a kustomization in the order in which they can be applied.

    Raises:
        Refused: with kubectl's message.
    """
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"Nothing was changed. {folder} cannot be rendered:\n{done.stderr.strip()}")
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


def is_function(manifest: Object) -> bool:
    return manifest["kind"] == "Service" and str(manifest["apiVersion"]).startswith("serving.knative.dev/")


def pods(manifest: Object) -> list[Object]:
    """Return the pod specifications in an object."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    if manifest["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob") or is_function(manifest):
        return [spec["template"]["spec"]]
    return []


def revision(function: Object, number: int) -> str:
    """Return the name of a function's revision in a release."""
    return f"{function['metadata']['name']}-r{number}"


def _repository(objects: list[Object]) -> str:
    return _without_version(
        next(one for one in objects if is_function(one))["spec"]["template"]["spec"]["containers"][0]["image"]
    )


def _without_version(image: str) -> str:
    return re.sub(r"(@.*|:[^/:]*)$", "", image)
