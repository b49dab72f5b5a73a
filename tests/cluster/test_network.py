"""NetworkPolicies on a cluster that enforces them: what ordinary pods reach, and what refuses them."""

import json

import pytest

from tests.cluster.conftest import IMAGE, NAMESPACE, kubectl, namespaced

PROBE = """
import json, socket, sys
def reaches(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except socket.gaierror:
        return "no name"
    except OSError:
        return "no"
    return "yes"
print(json.dumps({place: reaches(*place.rsplit(":", 1)) for place in sys.argv[1:]}))
"""
STRANGERS = "default"
KOURIER = "kourier-internal.kourier-system.svc.cluster.local:80"
API_SERVER = "kubernetes.default.svc.cluster.local:443"

pytestmark = pytest.mark.usefixtures("enforced")


@pytest.fixture(scope="module")
def servers(deployed: None) -> dict[str, str]:
    """The addresses of the pods of each server with its port: the policies are about pods."""
    ports = {"postgres": 5432, "pgbouncer": 5432, "redis": 6379, "kafka": 9092, "sandbox": 8080, "relay": 8080}
    return {name: f"{address(f'app={name}')}:{port}" for name, port in ports.items()}


@pytest.fixture(scope="module")
def enforced(servers: dict[str, str]) -> None:
    if reached("stranger", {}, servers["postgres"], namespace=STRANGERS) == {servers["postgres"]}:
        pytest.skip("NO POLICIES: this cluster's network does not enforce them")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"app": "user-service"}, {"pgbouncer", "redis"}),
        ({"app": "relay"}, {"postgres", "kafka"}),
        ({"app": "dispatcher"}, {"kafka"}),
        ({"app": "migration"}, {"postgres"}),
        ({"app": "release-check"}, {"postgres", "pgbouncer", "redis", "kafka"}),
        ({"app": "unknown"}, set()),
        ({"app": "user-service", "serving.knative.dev/service": "send-email"}, {"pgbouncer", "redis", "sandbox"}),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_pod_reaches_what_its_label_allows_and_nothing_else(
    servers: dict[str, str], labels: dict[str, str], names: set[str]
) -> None:
    found = reached("probe", labels, *servers.values(), API_SERVER)
    assert found == {servers[name] for name in names}


def test_who_calls_functions_reaches_kourier(servers: dict[str, str]) -> None:
    assert reached("caller", {"app": "ping"}, KOURIER, *servers.values()) == {KOURIER}


def test_nobody_from_another_namespace_gets_in(servers: dict[str, str]) -> None:
    """Not even with the labels of those who may."""
    for labels in ({}, {"app": "user-service"}, {"app": "relay"}):
        assert reached("stranger", labels, *servers.values(), namespace=STRANGERS) == set()


def address(selector: str) -> str:
    """Of one running pod."""
    found = json.loads(namespaced("get", "pods", "-l", selector, "--field-selector=status.phase=Running", "-o", "json"))
    return str(found["items"][0]["status"]["podIP"])


def reached(name: str, labels: dict[str, str], *places: str, namespace: str = NAMESPACE) -> set[str]:
    """Which of the places an ordinary pod with these labels can connect to."""
    overrides = {
        "metadata": {"labels": labels},
        "spec": {
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": name,
                    "image": IMAGE,
                    # Policies learn of a pod a moment after its start: until then it is another's.
                    "command": ["sh", "-c", 'sleep 5; exec python -c "$0" "$@"', PROBE, *places],
                    "resources": {"limits": {"memory": "64Mi"}},
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 10001,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }
            ],
        },
    }
    kubectl("--namespace", namespace, "delete", "pod", name, "--ignore-not-found", "--wait=true")
    run = ("run", name, f"--image={IMAGE}", "--restart=Never", f"--overrides={json.dumps(overrides)}")
    kubectl("--namespace", namespace, *run)
    finished = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("--namespace", namespace, "wait", finished, f"pod/{name}", "--timeout=120s")
    answers = json.loads(kubectl("--namespace", namespace, "logs", name))
    kubectl("--namespace", namespace, "delete", "pod", name, "--wait=false")
    return {place for place, answer in answers.items() if answer == "yes"}
