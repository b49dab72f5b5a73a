"""What the measurement deploys: a pod that sends requests, and copies of functions."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knative.kubernetes.cluster import Object
from knative.kubernetes.overlays import KUBECTL, OVERLAYS, is_function, render
from knative.terminal import Refused
from shared.runtime.manifests import NAMESPACE
from shared.runtime.resource_names import resource_name

ROOT = Path(__file__).parents[3]
NAME = "bench"
IN_POD = (
    "tests/__init__.py",
    *(f"tests/bench/{name}.py" for name in ("__init__", "accounts", "client", "people")),
    *(f"tests/bench/cluster/{name}.py" for name in ("__init__", "generator", "traffic")),
)
"""Files that the sending pod needs in addition to the image."""
READY_SECONDS = 180
SETTLED_SECONDS = 600


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl in the service's namespace and return its output.

    Raises:
        Refused: kubectl failed. The message has its error.
    """
    command = [str(KUBECTL), f"--namespace={NAMESPACE}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"kubectl {' '.join(arguments)}:\n{done.stderr.strip()}")
    return done.stdout


def get(kind: str, name: str) -> Object:
    found: Object = json.loads(kubectl("get", kind, name, "-o", "json"))
    return found


def refuse_unless_ready() -> None:
    """
    Raises:
        Refused: development is not deployed there.
    """
    if "get-profile" not in kubectl("get", "ksvc", "--ignore-not-found", "-o", "name"):
        raise Refused("Development is not deployed there. Deploy it: kubectl apply -k knative/overlays/development")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    """
    Raises:
        Refused: it takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Refused(f"After {seconds:.0f} s {what}.")
        time.sleep(0.5)


class Generator:
    """The process in the sending pod, which reads commands line by line (generator.py)."""

    def __init__(self) -> None:
        command = [str(KUBECTL), f"--namespace={NAMESPACE}", "exec", "-i", NAME, "--", "python", "-u", "-m"]
        self._process = subprocess.Popen(
            [*command, "tests.bench.cluster.generator"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and return the answer.

        Raises:
            Refused: the process ended. It has printed why.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise Refused("The process that sends requests has ended. See its output above.")
        return json.loads(answer)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def generator() -> Iterator[Generator]:
    """Run the pod that sends requests for the block.

    The relay is stopped meanwhile, so that event functions do not use the node's processors. Events of the measurement
    are deleted in the end.
    """
    relays = get("deployment", "relay")["spec"]["replicas"]
    kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": _generator()}))
    try:
        kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", f"--timeout={READY_SECONDS}s")
        kubectl("scale", "deployment/relay", "--replicas=0")
        wait_until(lambda: not _pods("app=user-service"), "functions still have pods", SETTLED_SECONDS)
        process = Generator()
        try:
            process.ask("begin")
            yield process
            process.ask("drop_events")
        finally:
            process.end()
    finally:
        kubectl("scale", "deployment/relay", f"--replicas={relays}")
        kubectl("delete", "--now", *(f"{one['kind']}/{one['metadata']['name']}" for one in _generator()))


def _generator() -> list[Object]:
    """With the image, the settings and the connection of the relay, and the bench beside the product."""
    keys = {file: file.replace("/", ".") for file in IN_POD}
    relay = get("deployment", "relay")["spec"]["template"]["spec"]
    container = {name: relay["containers"][0][name] for name in ("image", "env", "envFrom", "securityContext")}
    container["env"] = [one for one in container["env"] if one["name"] != "PORT"] + [
        {"name": "PYTHONPATH", "value": "/app:/bench"}
    ]
    container |= {
        "name": NAME,
        "command": ["sleep", "infinity"],
        # Without, it would have to wait for a processor longer than the functions.
        "resources": {"requests": {"cpu": "200m"}},
        "volumeMounts": [{"name": NAME, "mountPath": "/bench"}],
    }
    metadata = {"name": NAME, "namespace": NAMESPACE, "labels": {"app": NAME}}
    volume = {
        "name": NAME,
        "configMap": {"name": NAME, "items": [{"key": key, "path": file} for file, key in keys.items()]},
    }
    spec = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    from_here = {"from": [{"podSelector": {"matchLabels": {"app": NAME}}}]}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {key: (ROOT / file).read_text("utf-8") for file, key in keys.items()},
        },
        # It may reach all, and all pods of the namespace take what it sends.
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [from_here]},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata | {"name": f"{NAME}-out"},
            "spec": {"podSelector": {"matchLabels": {"app": NAME}}, "policyTypes": ["Egress"], "egress": [{}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec | {"containers": [container], "volumes": [volume]},
        },
    ]


def function(name: str) -> Object:
    """A function's Knative Service as production has it, with the image and the settings of this environment."""
    service = resource_name(name)
    (manifest,) = [
        one for one in render(OVERLAYS / "production") if is_function(one) and one["metadata"]["name"] == service
    ]
    here = get("ksvc", service)["spec"]["template"]["spec"]["containers"][0]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container |= {"image": here["image"], "envFrom": here["envFrom"]}
    return manifest


@contextmanager
def copies(*manifests: Object) -> Iterator[None]:
    """Knative Services of the bench alone, ready, as long as the block runs."""
    names = [f"ksvc/{manifest['metadata']['name']}" for manifest in manifests]
    kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [*manifests]}))
    try:
        kubectl("wait", "--for=condition=Ready", *names, f"--timeout={READY_SECONDS}s")
        yield
    finally:
        kubectl("delete", *names)
        until_no_pods(*(manifest["metadata"]["name"] for manifest in manifests))


def until_no_pods(*services: str) -> None:
    """Wait until functions have no pods. Pods that Knative has deleted are killed, as they would drain for 30 s."""

    def has_none() -> bool:
        pods = [pod for service in services for pod in pods_of(service)]
        if any("deletionTimestamp" not in pod["metadata"] for pod in pods):
            return False
        if names := [f"pod/{pod['metadata']['name']}" for pod in pods]:
            kubectl("delete", "--ignore-not-found", "--force", "--grace-period=0", *names)
        return not names

    wait_until(has_none, "functions that nobody calls still have pods")


def pods_of(service: str) -> list[Object]:
    return _pods(f"serving.knative.dev/service={service}")


def _pods(selector: str) -> list[Object]:
    found: list[Object] = json.loads(kubectl("get", "pods", "--selector", selector, "-o", "json"))["items"]
    return found


def seconds_of_cpu(pods: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Return the CPU seconds used so far by the processes of each container, given as (pod, name).

    Ended children count if their parent is process 1, as with PostgreSQL.
    """
    with ThreadPoolExecutor(len(pods)) as threads:
        used = threads.map(_seconds_of_cpu, pods.values())
        return dict(zip(pods, used, strict=True))


def _seconds_of_cpu(container: tuple[str, str]) -> float:
    pod, name = container
    ticks = 0
    # A process may end while it is read.
    for line in kubectl(
        "exec", pod, "-c", name, "--", "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"
    ).splitlines():
        process, _, rest = line.partition(" (")
        user, system, of_children, system_of_children = map(int, rest.rpartition(") ")[2].split()[11:15])
        ticks += user + system + (of_children + system_of_children if process == "1" else 0)
    return ticks / os.sysconf("SC_CLK_TCK")
