"""An environment on the current kube context, with the image that IMAGE names.

It is development, or what ENVIRONMENT names: staging and production, scaled down to a node of two cores.
"""

import http.client
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import PASSWORD, ROOT, wait_for

NAMESPACE = "aegis-user-service"
ENVIRONMENT = os.environ.get("ENVIRONMENT", "development")
HOST = {"development": "dev-api", "staging": "staging-api", "production": "api"}[ENVIRONMENT] + ".aegis.example.com"
DATABASE = {"development": "aegis_user_dev", "staging": "aegis_user_staging", "production": "aegis_user"}[ENVIRONMENT]
IMAGE = os.environ.get("IMAGE", "dev.local/aegis-user-service:dev")
PROMETHEUS_URL = os.environ.get("PROMETHEUS_URL")
USERS = "/api/v1/users"

MONITORING = ["knative/components/monitoring"] if PROMETHEUS_URL and ENVIRONMENT == "development" else []
"""Development itself has none."""
SCALED_DOWN = {
    "development": ["tests/cluster/to_zero"],
    "staging": ["tests/cluster/small"],
    "production": ["tests/cluster/production", "tests/cluster/small"],
}[ENVIRONMENT]
HAS_TLS = ENVIRONMENT != "development"


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("no_service")


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
        "gateway.envoyproxy.io/v1alpha1": "Envoy Gateway",
    }
    if PROMETHEUS_URL or ENVIRONMENT != "development":
        wanted["monitoring.coreos.com/v1"] = "the Prometheus operator"
    if ENVIRONMENT == "production":
        wanted["postgresql.cnpg.io/v1"] = "CloudNativePG"
    missing = [what for version, what in wanted.items() if version not in groups.stdout.split()]
    if missing:
        pytest.exit(f"The current kube context lacks {', '.join(missing)}.", returncode=1)


@pytest.fixture(scope="session", autouse=True)
def deployed() -> None:
    """Migrates and applies as the README says, and waits until all functions are ready."""
    refuse_unless_ready()
    subprocess.run(["make", "secrets"], cwd=ROOT, check=True, capture_output=True)
    kubectl("delete", "job", "migrate", "--namespace", NAMESPACE, "--ignore-not-found")
    if HAS_TLS:
        kubectl("apply", "-k", str(ROOT / "knative" / "base" / "access"))
        make_certificate()
    if ENVIRONMENT == "production":
        make_secrets()
    kubectl("apply", "-k", str(wrapped("migration", *SCALED_DOWN)))
    namespaced("wait", "--for=condition=complete", "job/migrate", "--timeout=400s")
    kubectl("apply", "-k", str(wrapped(".", *SCALED_DOWN, *MONITORING)))
    namespaced("wait", "--for=condition=Ready", "ksvc", "--all", "--timeout=300s")
    namespaced("rollout", "status", "deploy/relay", "deploy/dispatcher", "deploy/sandbox", "--timeout=120s")
    wait_for(lambda: call("GET", "/nowhere")[0] == 404, seconds=60)


def wrapped(part: str, *components: str) -> Path:
    """A kustomization of the environment, or of a part of it, with the image that is tested, and with more components.

    Beside the overlays, as kustomize takes no absolute path; git-ignored with the rest of .local.
    """
    name, _, tag = IMAGE.rpartition(":")
    folder = ROOT / ".local" / "cluster" / ENVIRONMENT / part
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(os.path.relpath(ROOT, folder))
    kustomization = {
        "resources": [str(root / "knative" / "overlays" / ENVIRONMENT / part)],
        "components": [str(root / component) for component in components],
        "images": [
            {"name": stated, "newName": name, "newTag": tag}
            for stated in ("aegis/user-service", "dev.local/aegis-user-service")
        ],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return folder


def make_certificate() -> None:
    """The certificate that cert-manager would get: self-signed, in the Secret that the gateway names."""
    with TemporaryDirectory() as folder:
        key, certificate = f"{folder}/tls.key", f"{folder}/tls.crt"
        request = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={HOST}"
        files = f"-addext subjectAltName=DNS:{HOST} -keyout {key} -out {certificate}"
        subprocess.run(["openssl", *request.split(), *files.split()], check=True, capture_output=True)
        namespaced("delete", "secret", "aegis-tls", "--ignore-not-found")
        namespaced("create", "secret", "tls", "aegis-tls", f"--key={key}", f"--cert={certificate}")


def make_secrets() -> None:
    """The Secrets that the External Secrets Operator would fetch from the store."""
    file = ROOT / "knative" / "overlays" / "staging" / "data" / "secrets.env"
    values = dict(line.split("=", 1) for line in file.read_text().splitlines())
    login = [f"--from-literal=username={values['DB_USER']}", f"--from-literal=password={values['DB_PASSWORD']}"]
    of_type = "--type=kubernetes.io/basic-auth"
    if "user-service-secrets" not in namespaced("get", "secrets", "-o", "name"):
        namespaced("create", "secret", "generic", "user-service-secrets", f"--from-env-file={file}")
        owner = f"--from-env-file={file.with_name('owner.env')}"
        sent = f"--from-env-file={file.with_name('gateway.env')}"
        namespaced("create", "secret", "generic", "gateway-key", sent)
        namespaced("create", "secret", "generic", "postgres-owner", of_type, owner)
        namespaced("create", "secret", "generic", "postgres-functions", of_type, *login)


def gateway() -> tuple[str, int]:
    """Host and port of the gateway: GATEWAY_URL, or the address in its status."""
    if url := os.environ.get("GATEWAY_URL"):
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or 80
    return namespaced("get", "gateway", "api", "-o", "jsonpath={.status.addresses[0].value}"), 80


class HTTPSConnection(http.client.HTTPSConnection):
    """To the gateway's address, which no name server knows by the name that its certificate has."""

    def connect(self) -> None:
        context = ssl.create_default_context()
        # Of the test, so nobody vouches for it; which name it has is checked by the gateway (SNI).
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = context.wrap_socket(
            socket.create_connection((gateway()[0], 443), self.timeout), server_hostname=HOST
        )


def connect(timeout: float = 60) -> http.client.HTTPConnection:
    if HAS_TLS:
        return HTTPSConnection(HOST, timeout=timeout)
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
        read = "import sys, urllib.request as http; url = 'http://127.0.0.1:8080/inbox?to=' + sys.argv[1]"
        read += "; print(http.urlopen(http.Request(url, headers={'Accept': 'application/json'})).read().decode())"
        messages = json.loads(namespaced("exec", "deploy/sandbox", "--", "python", "-c", read, address))
        texts = [message["text"] for message in messages]
        return texts[0].partition("#token=")[2].strip() if texts else ""

    return wait_for(find, seconds)


def new_address() -> str:
    return f"{uuid.uuid4().hex[:12]}@example.com"


def join() -> tuple[dict[str, str], str]:
    """Credentials and access token of a new user with a verified address."""
    body = {"email": new_address(), "password": PASSWORD}
    wait_for(lambda: answered("POST", USERS, body, 202))
    wait_for(
        lambda: answered(
            "POST", f"{USERS}/email/verify", {"token": mailed_token(body["email"]), "password": PASSWORD}, 204
        )
    )
    tokens = wait_for(lambda: answered("POST", f"{USERS}/login", body, 200))
    return body, tokens["access_token"]


def answered(method: str, path: str, body: Any, expected: int) -> Any:
    """The answer, of a status that is expected; None where the service is busy, and asks to come back."""
    status, answer, _ = call(method, path, body)
    assert status in (expected, 0, 503, 504), answer
    return (answer or {"status": status}) if status == expected else None


@pytest.fixture(scope="session")
def credentials(deployed: None) -> dict[str, str]:
    """Of a user with a verified address."""
    return join()[0]


@pytest.fixture(scope="session")
def bearers(deployed: None) -> list[dict[str, str]]:
    """Of several users, as one alone may not ask as often as a load does."""
    with ThreadPoolExecutor(4) as pool:
        return [{"Authorization": f"Bearer {token}"} for _, token in pool.map(lambda _: join(), range(24))]


def on(pod: str, statement: str) -> str:
    """What PostgreSQL in a pod says to a statement."""
    psql = ["psql", "--no-psqlrc", "-At", "-U", "postgres", "-d", DATABASE, "-c", statement]
    return namespaced("exec", pod, "-c", "postgres", "--", *psql).strip()


def aegis(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "knative.aegis", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


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
