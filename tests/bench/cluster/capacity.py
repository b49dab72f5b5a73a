"""Measure the requests a second of one pod of each function, their latency, and the cost of a request.

There is one pod, configured as in production. Another pod sends requests directly to it, bypassing gateway and
activator, over more and more connections. Each connection sends its next request when it has the answer.
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
"""Approximate time per number of connections."""
FEWEST, MOST = 40, 4000
"""Requests per try."""
SERVERS = {
    "postgres": ("pod/postgres-0", "postgres"),
    "pgbouncer": ("deployment/pgbouncer", "pgbouncer"),
    "redis": ("deployment/redis", "redis"),
}
# Requests come from beside the pod: its queue-proxy is the only proxy, and limits count as in production.
VARIABLES = {"TRUSTED_PROXY_HOPS": "2", "GATEWAY_KEY": "", "RATE_LIMIT_EXEMPT_NETWORKS": ""}


def measure(generator: Generator, names: Sequence[str]) -> None:
    """Measure these functions, or all, and write the figures."""
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
    """Return a function with exactly one pod."""
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
    """Return the result of these requests and their cost on each server: CPU seconds, and counts of its work."""
    requests = generator.ask("prepare", traffic=traffic, requests=min(max(requests, FEWEST), MOST))
    containers = SERVERS | {"function": (f"pod/{pod['metadata']['name']}", "function")}
    before = testbed.seconds_of_cpu(containers)
    done: dict[str, Any] = generator.ask("load", address=pod["status"]["podIP"], connections=connections)
    after = testbed.seconds_of_cpu(containers)
    done["requests"] = requests
    done["asked"] |= {name: after[name] - before[name] for name in containers}
    return done
