"""The development overlay on the current kube context, with the image that IMAGE names."""

import http.client
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import PASSWORD, ROOT, wait_for

NAMESPACE = "aegis-user-service"
HOST = "dev-api.aegis.example.com"
IMAGE = os.environ.get("IMAGE", "dev.local/aegis-user-service:dev")
PROMETHEUS_URL = os.environ.get("PROMETHEUS_URL")
USERS = "/api/v1/users"


def kubectl(*arguments: str) -> str:
    """What kubectl prints; fails with what it complains about."""
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"kubectl {' '.join(arguments)}:\n{done.stderr}")
    return done.stdout


def namespaced(*arguments: str) -> str:
    return kubectl("--namespace", NAMESPACE, *arguments)


def refuse_unless_ready() -> None:
    """Says all that the current context lacks, before anything is changed."""
    if not shutil.which("kubectl"):
        pytest.exit("kubectl is not installed.", returncode=1)
    groups = subprocess.run(["kubectl", "api-versions"], capture_output=True, text=True, check=False)
    if groups.returncode:
        pytest.exit(f"The current kube context does not answer:\n{groups.stderr}", returncode=1)
    wanted = {
        "serving.knative.dev/v1": "Knative Serving",
        "gateway.networking.k8s.io/v1": "the Gateway API with a controller for the GatewayClass envoy",
    }
    if PROMETHEUS_URL:
        wanted["monitoring.coreos.com/v1"] = "the Prometheus operator"
    missing = [what for version, what in wanted.items() if version not in groups.stdout.split()]
    if missing:
        pytest.exit(f"The current kube context lacks {', '.join(missing)}.", returncode=1)


@pytest.fixture(scope="session", autouse=True)
def deployed() -> None:
    """Migrates and applies as the README says, and waits until all functions are ready."""
    refuse_unless_ready()
    subprocess.run(["make", "secrets"], cwd=ROOT, check=True, capture_output=True)
    kubectl("delete", "job", "migrate", "--namespace", NAMESPACE, "--ignore-not-found")
    kubectl("apply", "-k", str(wrapped("development/migration")))
    namespaced("wait", "--for=condition=complete", "job/migrate", "--timeout=180s")
    # Development itself has no monitoring.
    kubectl("apply", "-k", str(wrapped("development", *(["monitoring"] if PROMETHEUS_URL else []))))
    namespaced("wait", "--for=condition=Ready", "ksvc", "--all", "--timeout=300s")
    namespaced("rollout", "status", "deploy/relay", "deploy/dispatcher", "deploy/sandbox", "--timeout=120s")
    wait_for(lambda: call("GET", "/nowhere")[0] == 404, seconds=60)


def wrapped(overlay: str, *components: str) -> Path:
    """A kustomization of an overlay with the image that is tested, and with more components.

    Beside the overlays, as kustomize takes no absolute path; git-ignored with the rest of .local.
    """
    name, _, tag = IMAGE.rpartition(":")
    folder = ROOT / ".local" / "cluster" / overlay
    folder.mkdir(parents=True, exist_ok=True)
    knative = Path(os.path.relpath(ROOT / "knative", folder))
    kustomization = {
        "resources": [str(knative / "overlays" / overlay)],
        "components": [str(knative / "components" / component) for component in components],
        "images": [{"name": "dev.local/aegis-user-service", "newName": name, "newTag": tag}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return folder


def gateway() -> tuple[str, int]:
    """Host and port of the gateway: GATEWAY_URL, or the address in its status."""
    if url := os.environ.get("GATEWAY_URL"):
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or 80
    return namespaced("get", "gateway", "api", "-o", "jsonpath={.status.addresses[0].value}"), 80


def connect(timeout: float = 60) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*gateway(), timeout=timeout)


def call(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
    """One request through the gateway: status, JSON, headers. Status 0 while the gateway does not answer."""
    connection = connect()
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Host": HOST, "Content-Type": "application/json", **headers})
        response = connection.getresponse()
        content = response.read()
        is_json = "json" in response.headers.get("Content-Type", "")
        return response.status, json.loads(content) if is_json and content else None, response.headers
    except OSError:
        return 0, None, http.client.HTTPMessage()
    finally:
        connection.close()


def mailed_token(address: str, seconds: float = 60) -> str:
    """The token in the mail to an address, once it is there."""

    def find() -> str:
        messages = call("GET", f"/inbox?to={address}", Accept="application/json")[1] or []
        texts = [message["text"] for message in messages]
        return texts[0].partition("#token=")[2].strip() if texts else ""

    return wait_for(find, seconds)


def new_address() -> str:
    return f"{uuid.uuid4().hex[:12]}@example.com"


@pytest.fixture(scope="session")
def credentials(deployed: None) -> dict[str, str]:
    """Of a user with a verified address."""
    found = {"email": new_address(), "password": PASSWORD}
    assert call("POST", USERS, found)[0] == 202
    assert (
        call("POST", f"{USERS}/email/verify", {"token": mailed_token(found["email"]), "password": PASSWORD})[0] == 204
    )
    return found


@pytest.fixture(scope="session")
def bearers(deployed: None) -> list[dict[str, str]]:
    """Of several users, as one alone may not ask as often as a load does."""

    def join(_number: int) -> dict[str, str]:
        body = {"email": new_address(), "password": PASSWORD}
        assert call("POST", USERS, body)[0] == 202
        assert (
            call("POST", f"{USERS}/email/verify", {"token": mailed_token(body["email"]), "password": PASSWORD})[0]
            == 204
        )
        status, tokens, _ = call("POST", f"{USERS}/login", body)
        assert status == 200
        return {"Authorization": f"Bearer {tokens['access_token']}"}

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(join, range(24)))


def pods(service: str) -> int:
    """Running pods of a function."""
    selector = f"serving.knative.dev/service={service}"
    found = json.loads(namespaced("get", "pods", "-l", selector, "-o", "json"))["items"]
    return sum(pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"] for pod in found)


@dataclass
class Load:
    """Requests of several callers, counted by status; 0 stands for a broken connection."""

    statuses: Counter[int] = field(default_factory=Counter)
    pods: list[int] = field(default_factory=list)

    @property
    def failed(self) -> dict[int, int]:
        return {status: count for status, count in self.statuses.items() if status != 200}


@contextmanager
def load(callers: int, send: Callable[[http.client.HTTPConnection], int]) -> Iterator[Load]:
    """Lets so many callers send one request after the other as long as the block runs."""
    running, stopped = Load(), threading.Event()

    def run() -> None:
        connection = connect()
        while not stopped.is_set():
            try:
                status = send(connection)
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            running.statuses[status] += 1

    threads = [threading.Thread(target=run) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def get_profile(bearers: list[dict[str, str]], pause: float = 0.0) -> Callable[[http.client.HTTPConnection], int]:
    in_turn = itertools.cycle(bearers)

    def send(connection: http.client.HTTPConnection) -> int:
        connection.request("GET", f"{USERS}/me", headers={"Host": HOST, **next(in_turn)})
        response = connection.getresponse()
        response.read()
        time.sleep(pause)
        return response.status

    return send


def log_in(credentials: dict[str, str]) -> Callable[[http.client.HTTPConnection], int]:
    body = json.dumps(credentials)

    def send(connection: http.client.HTTPConnection) -> int:
        connection.request("POST", f"{USERS}/login", body, {"Host": HOST, "Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status

    return send
