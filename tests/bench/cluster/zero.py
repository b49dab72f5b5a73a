"""The time to an answer of a function without pods, compared with functions-framework's hello, same settings."""

from knative.kubernetes.cluster import Object
from shared.runtime.manifests import NAMESPACE
from tests.bench.cluster import testbed
from tests.bench.cluster.testbed import Generator
from tests.bench.figures import Figure, beside
from tests.bench.servers import BASELINES

RUNS = 15
SCALING = {"min-scale": "0", "window": "6s", "scale-down-delay": "0s"}
"""The fastest scale-down to zero that Knative allows."""
CACHED, MISSED, HELLO = "bench-get-profile", "bench-get-profile-missed", "bench-hello"
TRAFFIC = {CACHED: "get_profile", MISSED: "get_profile, missed", HELLO: "hello"}


def measure(generator: Generator) -> list[Figure]:
    def seconds(service: str) -> float:
        testbed.until_no_pods(*TRAFFIC)
        host = f"{service}.{NAMESPACE}.svc.cluster.local"
        took: float = generator.ask("reach", host=host, traffic=TRAFFIC[service])
        print(f"{service} answered from zero after {took:.2f} s", flush=True)
        return took

    with testbed.copies(_get_profile(CACHED), _get_profile(MISSED), _hello()):
        # In turns, so that other load on the node affects all. The first round is a warm-up.
        rounds = [{service: seconds(service) for service in TRAFFIC} for _ in range(RUNS + 1)][1:]
    pairs = {name: [(one[name], one[HELLO]) for one in rounds] for name in (CACHED, MISSED)}
    return [
        beside("zero_start", "s", "<= 1.2", pairs[CACHED]),
        beside("zero_start_missed", "s", "", pairs[MISSED]),
    ]


def _get_profile(name: str) -> Object:
    manifest = testbed.function("get_profile")
    manifest["metadata"]["name"] = name
    annotations = manifest["spec"]["template"]["metadata"]["annotations"]
    annotations |= {f"autoscaling.knative.dev/{setting}": value for setting, value in SCALING.items()}
    return manifest


def _hello() -> Object:
    """The same but for what it starts: functions-framework's own command.

    Its source is in its environment: a volume would take the kubelet time, and get_profile has none.
    """
    manifest = _get_profile(HELLO)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    file = "/dev/shm/hello.py"  # noqa: S108
    container["command"] = [
        "sh",
        "-c",
        f'echo "$HELLO" > {file} && exec functions-framework --target hello --source {file}',
    ]
    container["env"] = [
        {"name": "HELLO", "value": (BASELINES / "hello.py").read_text("utf-8")},
        # gunicorn wants a file, and the root file system is read-only.
        {"name": "TMPDIR", "value": "/dev/shm"},  # noqa: S108
    ]
    return manifest
