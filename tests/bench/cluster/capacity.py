"""How many requests a second one pod of each function answers, in what time, and what a request costs.

The pod is as production has it, and the only one; the requests come from a pod beside it, past gateway and activator,
over more and more connections, each of which sends its next request when it has the answer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from knative.kubernetes.cluster import Object
from knative.terminal import Refused
from tests.bench import measured
from tests.bench.cluster import testbed
from tests.bench.cluster.testbed import Generator
from tests.bench.measured import Measured, Try

SECONDS = 5.0
"""For which each number of connections is tried, about."""
FEWEST, MOST = 40, 4000
"""Requests of a try."""
SERVERS = {
    "postgres": ("pod/postgres-0", "postgres"),
    "pgbouncer": ("deployment/pgbouncer", "pgbouncer"),
    "redis": ("deployment/redis", "redis"),
}
# Requests come from beside the pod: its queue-proxy is the only proxy, and limits count as in production.
VARIABLES = {"TRUSTED_PROXY_HOPS": "2", "GATEWAY_KEY": "", "RATE_LIMIT_EXEMPT_NETWORKS": ""}


def measure(generator: Generator, names: Sequence[str]) -> None:
    """Writes the figures of these functions, or of all."""
    figures = measured.read() if measured.FIGURES.exists() else {}
    for name in names or measured.FUNCTIONS:
        figures[name] = _measured(generator, name)
        measured.write(figures)


def _measured(generator: Generator, traffic: str) -> Measured:
    """
    Raises:
        Refused: a request failed over one connection.
    """
    manifest = _alone(testbed.function(measured.function_of(traffic)))
    tries: list[Try] = []
    asked: Counter[str] = Counter()
    requests = 0
    with testbed.copies(manifest):
        (pod,) = testbed.pods_of(manifest["metadata"]["name"])
        rate = _try(generator, traffic, pod, 2, FEWEST)["rate"]  # warms up
        for connections in _steps(manifest["spec"]["template"]["spec"]["containerConcurrency"]):
            done = _try(generator, traffic, pod, connections, round(rate * SECONDS))
            print(f"{traffic}: {done}", flush=True)
            if done["failure"]:
                break
            rate = done["rate"]
            tries.append(Try(connections, round(rate, 1), round(1000 * done["p95"], 1), round(done["busy"], 2)))
            asked.update(done["asked"])
            requests += done["requests"]
    if not tries:
        raise Refused(f"{traffic} failed: {done['failure']}")
    return Measured(
        tries,
        **{what: round(1000 * asked[what] / requests, 3) for what in ("function", *SERVERS)},
        **{what: round(asked[what] / requests, 1) for what in ("transactions", "commands", "events")},
    )


def _steps(most: int) -> Iterator[int]:
    connections = 1
    while connections < most:
        yield connections
        connections *= 2
    yield most


def _alone(manifest: Object) -> Object:
    """A function as it is, but for its one pod."""
    manifest["metadata"]["name"] = f"bench-{manifest['metadata']['name']}"
    template = manifest["spec"]["template"]
    template["metadata"]["annotations"] |= {
        "autoscaling.knative.dev/min-scale": "1",
        "autoscaling.knative.dev/max-scale": "1",
    }
    (container,) = template["spec"]["containers"]
    kept = [variable for variable in container["env"] if variable["name"] not in VARIABLES]
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in VARIABLES.items())]
    return manifest


def _try(generator: Generator, traffic: str, pod: Object, connections: int, requests: int) -> dict[str, Any]:
    """What became of so many requests, and what they asked of each server: seconds of CPU, and in its own terms."""
    requests = generator.ask("prepare", traffic=traffic, requests=min(max(requests, FEWEST), MOST))
    containers = SERVERS | {"function": (f"pod/{pod['metadata']['name']}", "function")}
    before = testbed.seconds_of_cpu(containers)
    done: dict[str, Any] = generator.ask("load", address=pod["status"]["podIP"], connections=connections)
    after = testbed.seconds_of_cpu(containers)
    done["requests"] = requests
    done["asked"] |= {name: after[name] - before[name] for name in containers}
    return done
