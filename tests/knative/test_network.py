"""Who may reach whom in each environment, by its NetworkPolicies: all that the table does not name is refused.

tests/cluster/test_network.py shows the same on a cluster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import getsource
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from shared.framework.registry import load_all, uses
from shared.runtime.resource_names import function_name
from tests.knative.environments import ENVIRONMENTS, Objects, functions_of, objects_of

pytestmark = pytest.mark.no_service

NAMESPACE = "aegis-user-service"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Place:
    """A pod, or an address outside the cluster."""

    kind: str
    namespace: str = NAMESPACE
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.1.2.3"


ELSEWHERE = (
    Place("activator", "knative-serving", {"app": "activator"}),
    Place("autoscaler", "knative-serving", {"app": "autoscaler"}),
    Place("kourier", "kourier-system", {"app": "3scale-kourier-gateway"}),
    Place(
        "gateway",
        "envoy-gateway-system",
        {"app.kubernetes.io/managed-by": "envoy-gateway", "app.kubernetes.io/component": "proxy"},
    ),
    Place("prometheus", "monitoring"),
    Place("dns", "kube-system", {"k8s-app": "kube-dns"}),
    Place("operator of postgres", "cnpg-system"),
    Place("operator of kafka", "strimzi"),
    Place("another namespace", "default", {"app": "user-service"}),
    Place("provider", "", address="203.0.113.7"),
    Place("instance metadata", "", address="169.254.169.254"),
)
"""What has no policies of ours: it may send whatever it likes, and takes what we let go there."""

PORTS = (22, 53, 80, 443, 5432, 6379, 6443, 8000, 8012, 8013, 8080, 8081, 8089, 8112, 8443, 9090, 9091, 9092, 16379)

QUEUE_PROXY = (8012, 8013, 8112)

FUNCTIONS = ("function", "function of a provider", "function of new passwords")

EVERYWHERE: dict[str, dict[str, tuple[int, ...]]] = {
    "function": {"pgbouncer": (5432,), "redis": (6379,)},
    "function of a provider": {"pgbouncer": (5432,), "redis": (6379,)},
    "function of new passwords": {"pgbouncer": (5432,), "redis": (6379,)},
    "relay": {"postgres": (5432,), "kafka": (9092,)},
    "dispatcher": {"kafka": (9092,), "kourier": (8081,)},
    "ping": {"kourier": (8081,)},
    "migration": {"postgres": (5432,)},
    "backup": {"postgres": (5432,)},
    "release-check": {
        "postgres": (5432,),
        "pgbouncer": (5432,),
        "redis": (6379,),
        "kafka": (9092,),
        "kourier": (8081,),
    },
    "pgbouncer": {"postgres": (5432,)},
    "postgres": {"postgres": (5432,)},  # a replica its primary
    "redis": {"redis": (6379, 16379)},  # the nodes of a cluster
    "activator": dict.fromkeys(FUNCTIONS, QUEUE_PROXY),
    "kourier": dict.fromkeys(FUNCTIONS, QUEUE_PROXY),
    "autoscaler": dict.fromkeys(FUNCTIONS, (9090,)),
}
WITH_SANDBOX: dict[str, dict[str, tuple[int, ...]]] = {"function of a provider": {"sandbox": (8080,)}}
WITH_INBOX: dict[str, dict[str, tuple[int, ...]]] = {"gateway": {"sandbox": (8080,)}}
WITH_REPLICA: dict[str, dict[str, tuple[int, ...]]] = {
    **{kind: {"pgbouncer-replica": (5432,)} for kind in FUNCTIONS},
    "pgbouncer-replica": {"postgres": (5432,)},
}
WITH_TLS: dict[str, dict[str, tuple[int, ...]]] = {"gateway": {"solver": (8089,)}}
WITH_MONITORING: dict[str, dict[str, tuple[int, ...]]] = {
    "prometheus": {
        **dict.fromkeys(FUNCTIONS, (8080, 9091)),
        "relay": (8080,),
        "dispatcher": (8080,),
    },
}
WITH_BREACHED_PASSWORDS: dict[str, dict[str, tuple[int, ...]]] = {"function of new passwords": {"provider": (443,)}}
# Whoever watches resources at the API server may reach these two ports anywhere: no policy can name its address.
API_SERVER: dict[str, tuple[int, ...]] = dict.fromkeys((place.kind for place in ELSEWHERE), (443, 6443))
WITH_OPERATORS: dict[str, dict[str, tuple[int, ...]]] = {
    "function of a provider": {"provider": (443,)},
    "backup": {"provider": (443,)},  # the bucket
    "postgres": {"postgres": (8000,), **API_SERVER},
    "pgbouncer": API_SERVER,
    "pgbouncer-replica": API_SERVER,
    "kafka": {"kafka": (9090, 9091), **API_SERVER},
    "operator of postgres": {"postgres": (5432, 8000)},
    "operator of kafka": {"kafka": (8443, 9090, 9091)},
}
EXPECTED = {
    "development": [EVERYWHERE, WITH_SANDBOX, WITH_INBOX],
    "staging": [EVERYWHERE, WITH_REPLICA, WITH_SANDBOX, WITH_TLS, WITH_MONITORING, WITH_BREACHED_PASSWORDS],
    "production": [EVERYWHERE, WITH_REPLICA, WITH_TLS, WITH_MONITORING, WITH_OPERATORS, WITH_BREACHED_PASSWORDS],
}

Reach = set[tuple[str, str, int]]
"""From what, to what, at which port."""


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_everybody_reaches_what_the_table_names_and_nothing_else(environment: str) -> None:
    objects = objects_of(environment)
    inside = list({place.kind: place for place in pods_of(objects | objects_of(environment, "migration"))}.values())
    expected = {
        (source, target, port)
        for table in EXPECTED[environment]
        for source, targets in table.items()
        for target, ports in targets.items()
        for port in ports
    }
    expected |= {(place.kind, "dns", 53) for place in inside}
    reached = reach(policies_of(objects), inside)
    assert sorted(reached - expected) == []
    assert sorted(expected - reached) == []


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_all_pods_of_a_kind_reach_the_same(environment: str) -> None:
    """So the table holds for each function, and for each pod of a server."""
    objects = objects_of(environment)
    meant: dict[str, set[tuple[bool, ...]]] = {}
    for place in pods_of(objects):
        meant.setdefault(place.kind, set()).add(tuple(mentions(policies_of(objects), place)))
    assert {kind: len(different) for kind, different in meant.items()} == dict.fromkeys(meant, 1)


def test_the_policies_are_there_before_the_first_pod() -> None:
    """The migration is applied first, and servers start with it."""
    for environment in ENVIRONMENTS:
        first = policies_of(objects_of(environment, "migration"))
        assert {"nobody", "postgres", "redis", "kafka"} <= {policy["metadata"]["name"] for policy in first}


def test_where_knative_eventing_delivers_its_broker_reads_the_topic() -> None:
    eventing = Place("eventing", "knative-eventing")
    objects = objects_of("production", delivery="eventing")
    kafka = next(place for place in pods_of(objects) if place.kind == "kafka")
    reached = {port for port in PORTS if may_reach(policies_of(objects), eventing, kafka, port)}
    assert reached == {9092}


def reach(policies: list[dict[str, Any]], inside: list[Place]) -> Reach:
    """What pods can reach, and what can reach them."""
    return {
        (source.kind, target.kind, port)
        for source in (*inside, *ELSEWHERE)
        for target in (*inside, *ELSEWHERE)
        if NAMESPACE in (source.namespace, target.namespace)
        for port in PORTS
        if may_reach(policies, source, target, port)
    }


def mentions(policies: list[dict[str, Any]], place: Place) -> Iterator[bool]:
    """Whether a pod is meant by each selector of the policies."""
    for policy in policies:
        yield _selects(policy["spec"]["podSelector"], place.labels)
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, ()):
                yield from (_is_meant(peer, place) for peer in rule.get(peers, ()))


def policies_of(objects: Objects) -> list[dict[str, Any]]:
    return [item for (kind, _), item in objects.items() if kind == "NetworkPolicy"]


def pods_of(objects: Objects) -> Iterator[Place]:
    """Every kind of pod in the namespace, those of operators too, and one that nobody knows."""
    load_all()
    yield Place("unknown")
    yield Place("release-check", labels={"app": "release-check"})
    yield Place("solver", labels={"acme.cert-manager.io/http01-solver": "true"})  # cert-manager's
    for service in functions_of(objects):
        name = service["metadata"]["name"]
        calls_provider = uses(function_name(name)) & {"email", "sms", "business_registry"}
        labels = service["spec"]["template"]["metadata"]["labels"] | {"serving.knative.dev/service": name}
        code = getsource(import_module(f"functions.{function_name(name)}"))
        takes_new_password = "check_acceptable" in code
        kind = FUNCTIONS[1 if calls_provider else 2 if takes_new_password else 0]
        yield Place(kind, labels=labels)
    for item in objects.values():
        labels = labels_of_pods(item)
        if labels:
            yield Place(labels["app"], labels=labels)


def labels_of_pods(item: dict[str, Any]) -> dict[str, str]:
    """Of those that an object makes; empty where it makes none."""
    labels: dict[str, str] = {}
    match item["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            labels = item["spec"]["template"]["metadata"]["labels"]
        case "CronJob":
            labels = item["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
        case "Cluster":
            labels = item["spec"]["inheritedMetadata"]["labels"]
        case "Pooler":
            labels = item["spec"]["template"]["metadata"]["labels"]
        case "KafkaNodePool":
            labels = item["spec"]["template"]["pod"]["metadata"]["labels"]
    return labels


def may_reach(policies: list[dict[str, Any]], source: Place, target: Place, port: int) -> bool:
    """As Kubernetes decides: what a policy selects is closed, but for what any of them opens; both ends must agree."""
    leaves = _admitted(policies, source, "Egress", target, port)
    return leaves and _admitted(policies, target, "Ingress", source, port)


def _admitted(policies: list[dict[str, Any]], at: Place, direction: str, peer: Place, port: int) -> bool:
    selecting = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"]
        and policy["metadata"]["namespace"] == at.namespace
        and _selects(policy["spec"]["podSelector"], at.labels)
    ]
    peers = "from" if direction == "Ingress" else "to"
    return not selecting or any(
        ("ports" not in rule or any(stated["port"] == port for stated in rule["ports"]))
        and (peers not in rule or any(_is_meant(stated, peer) for stated in rule[peers]))
        for spec in selecting
        for rule in spec.get(direction.lower(), ())
    )


def _is_meant(stated: dict[str, Any], peer: Place) -> bool:
    if block := stated.get("ipBlock"):
        address = ip_address(peer.address)
        within = [ip_network(network) for network in (block["cidr"], *block.get("except", ()))]
        return address in within[0] and not any(address in network for network in within[1:])
    if "namespaceSelector" in stated:
        in_namespace = bool(peer.namespace) and _selects(stated["namespaceSelector"], {NAMESPACE_LABEL: peer.namespace})
    else:
        in_namespace = peer.namespace == NAMESPACE
    return in_namespace and _selects(stated.get("podSelector", {}), peer.labels)


def _selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    wanted: dict[str, str] = selector.get("matchLabels", {})
    expressions: list[dict[str, Any]] = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(labels.get(name) == value for name, value in wanted.items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def test_what_a_policy_opens_is_open_for_what_it_selects_alone() -> None:
    """The evaluator itself, on a policy as Kubernetes' documentation explains it."""
    policy = {
        "metadata": {"namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "db"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: "web"}}, "podSelector": {}},
                        {"podSelector": {"matchLabels": {"app": "front"}}},
                    ],
                    "ports": [{"port": 6379}],
                }
            ],
        },
    }
    database, front = Place("db", labels={"app": "db"}), Place("front", labels={"app": "front"})
    assert may_reach([policy], front, database, 6379)
    assert may_reach([policy], Place("any", "web"), database, 6379)
    assert may_reach([policy], database, front, 22)
    assert not may_reach([policy], front, database, 22)
    assert not may_reach([policy], Place("any"), database, 6379)
    assert not may_reach([policy], Place("front", "other", {"app": "front"}), database, 6379)
