"""Compare Knative Services with the guide's Deployment and HPA: the same image under the same spike.

    make loadtest-compare URL=http://dev-api.aegis.example.com IMAGE=dev.local/aegis-user-service:dev USERS=120

Runs for 45 minutes on the current kube context, where development must be deployed and otherwise unused. It writes
docs/knative-vs-hpa.md and its plots, and finally restores development. loadtests/compare has both sides.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from knative.kubernetes.cluster import Cluster, Object, Rejected
from knative.kubernetes.overlays import KUBECTL
from knative.terminal import Refused
from loadtests import report
from loadtests.record import Record
from loadtests.verdict import NOT_JUDGED

ROOT = Path(__file__).parents[1]
SIDES = Path(__file__).parent / "compare"
WORK = ROOT / ".local" / "compare"
DOCUMENT = ROOT / "docs" / "knative-vs-hpa.md"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SECONDS, QUIET_SECONDS = 300, 900
"""Length of the spike, including the quieter parts before and after it, and of the idle time that follows."""
SETTLING_SECONDS = 900.0
MIN_REPLICAS = 3
POD_LABEL = "app=user-service"


@dataclass(frozen=True)
class Pods:
    """The pods of the service at one moment."""

    second: float
    """Since the run began."""
    count: int
    cpu: float
    """CPUs that they request, in sum."""


@dataclass(frozen=True)
class Side:
    """One of the two sides and its results."""

    name: str
    folder: str
    host: str
    run: Record = field(default_factory=dict)
    pods: list[Pods] = field(default_factory=list)

    @property
    def bad_seconds(self) -> int:
        """Seconds in which the 95th percentile was over the limit, or nobody got an answer."""
        limit = self.run["thresholds"]["latency"]
        return sum(p95 is None or p95 > limit for p95 in self.run["over_time"]["p95"][self.first_answer :])

    @property
    def first_answer(self) -> int:
        return next(second for second, p95 in enumerate(self.run["over_time"]["p95"]) if p95 is not None)

    @property
    def pod_seconds(self) -> float:
        return self._over_time(lambda pods: pods.count)

    @property
    def cpu_seconds(self) -> float:
        """CPUs requested, over time."""
        return self._over_time(lambda pods: pods.cpu)

    def of_a_day(self, spikes: int) -> float:
        """Return the pod-seconds of a day with this many spikes and their quiet times, and idle otherwise."""
        at_rest = MIN_REPLICAS if self.folder == HPA.folder else 0
        return spikes * self.pod_seconds + at_rest * (86_400 - spikes * (SECONDS + QUIET_SECONDS))

    @property
    def most_pods(self) -> int:
        return max(pods.count for pods in self.pods)

    def _over_time(self, measure: Callable[[Pods], float]) -> float:
        pairs = zip(self.pods, self.pods[1:], strict=False)
        return sum(measure(now) * (then.second - now.second) for now, then in pairs)


KNATIVE = Side("Knative", "knative", "dev-api.aegis.example.com")
HPA = Side("Deployment + HPA", "hpa", "hpa-api.aegis.example.com")


def main() -> None:
    try:
        url, cluster = os.environ.get("URL", "").rstrip("/"), Cluster(None)
        refuse_unless_ready(url, cluster)
        try:
            # The guide's first: the other side benefits from warm caches and tables.
            hpa, knative = (measured(side, url, cluster) for side in (HPA, KNATIVE))
        finally:
            only_knative()
            apply("knative/overlays/development")
    except (Refused, Rejected) as error:
        sys.exit(str(error))
    write(knative, hpa)
    print(f"\n{DOCUMENT.relative_to(ROOT)} has the figures; the reports of both runs are in {WORK.relative_to(ROOT)}")


def refuse_unless_ready(url: str, cluster: Cluster) -> None:
    """
    Raises:
        Refused: the cluster or this machine lacks a requirement.
    """
    if not url:
        raise Refused("URL is not set. Set it to the gateway: make loadtest-compare URL=http://10.240.0.2")
    if not CHROMIUM:
        raise Refused("Chromium is not installed. It is needed to draw the plots.")
    try:
        cluster.request("GET", "/apis/metrics.k8s.io/v1beta1")
    except Rejected as error:
        raise Refused(f"The HPA needs metrics-server, which the cluster does not have: {error}") from error
    if not cluster.list("serving.knative.dev/v1", "Service"):
        raise Refused("Development is not deployed there. Deploy it: kubectl apply -k knative/overlays/development")


def apply(folder: str) -> None:
    """Apply an overlay with the image IMAGE."""
    WORK.mkdir(parents=True, exist_ok=True)
    name, _, tag = os.environ.get("IMAGE", "dev.local/aegis-user-service:dev").rpartition(":")
    kustomization = {
        "resources": [os.path.relpath(ROOT / folder, WORK)],  # kustomize accepts no absolute paths
        "images": [
            {"name": stated, "newName": name, "newTag": tag}
            for stated in ("aegis/user-service", "dev.local/aegis-user-service")
        ],
    }
    (WORK / "kustomization.yaml").write_text(json.dumps(kustomization))
    kubectl("apply", "-k", str(WORK))


def kubectl(*arguments: str) -> str:
    """Return the output of kubectl.

    Raises:
        Refused: kubectl failed. The message has its error.
    """
    done = subprocess.run([KUBECTL, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"kubectl {' '.join(arguments)}:\n{done.stderr.strip()}")
    return done.stdout


def only_knative() -> None:
    """Delete the guide's Deployment, if it exists."""
    for file in ("user_service.yaml", "network_policies.yaml"):
        kubectl("delete", "--ignore-not-found", "-f", str(SIDES / HPA.folder / file))
    kubectl("--namespace=aegis-user-service", "delete", "--ignore-not-found", "configmap/every-function")


def measured(side: Side, url: str, cluster: Cluster) -> Side:
    """Deploy a side, wait until it is idle, and run the spike."""
    print(f"\n{side.name}: deploying and waiting until it is idle", flush=True)
    only_knative()
    apply(f"loadtests/compare/{side.folder}")
    wait_until_at_rest(side, cluster)
    file = WORK / f"{side.folder}.html"
    environment = {
        **os.environ,
        "SCENARIO": "spike",
        "DURATION": f"{SECONDS}s",
        "URL": url,
        "HOST_HEADER": side.host,
        "REPORT": str(file),
        # This measures how long it was slow, not whether an alert noticed.
        "PROMETHEUS_URL": "",
    }
    # Delete the result of an earlier run.
    file.with_suffix(".json").unlink(missing_ok=True)
    with watched(cluster) as seen:
        done = subprocess.run([sys.executable, "-m", "loadtests.run"], cwd=ROOT, env=environment, check=False)
        if done.returncode == NOT_JUDGED or not file.with_suffix(".json").exists():
            raise Refused(f"The load test of {side.name} did not run: see above.")
        print(f"{side.name}: quiet for {QUIET_SECONDS} s", flush=True)
        time.sleep(QUIET_SECONDS)
    return Side(side.name, side.folder, side.host, json.loads(file.with_suffix(".json").read_text()), seen)


def wait_until_at_rest(side: Side, cluster: Cluster) -> None:
    """
    Raises:
        Refused: it does not become idle.
    """
    kubectl("--namespace=aegis-user-service", "wait", "--for=condition=Ready", "ksvc", "--all", "--timeout=600s")
    kubectl(
        "--namespace=aegis-user-service", "rollout", "status", "deploy/dispatcher", "deploy/relay", "--timeout=300s"
    )
    deadline = time.monotonic() + SETTLING_SECONDS
    while not is_at_rest(side, cluster):
        if time.monotonic() > deadline:
            raise Refused(f"{side.name} was not idle after {SETTLING_SECONDS:.0f} s.")
        time.sleep(2)


def is_at_rest(side: Side, cluster: Cluster) -> bool:
    """Return whether no function has pods, or the Deployment has its three and the HPA knows their CPU use."""
    pods = cluster.list("v1", "Pod", POD_LABEL)
    if side.folder == KNATIVE.folder:
        return not pods
    scaler = cluster.get("autoscaling/v2", "HorizontalPodAutoscaler", "user-service") or {}
    metrics = scaler.get("status", {}).get("currentMetrics") or [{}]
    knows = all("averageUtilization" in one.get("resource", {}).get("current", {}) for one in metrics)
    ready = [
        pod for pod in pods if all(one["ready"] for one in pod["status"].get("containerStatuses", [{"ready": False}]))
    ]
    return knows and len(pods) == len(ready) == MIN_REPLICAS


@contextmanager
def watched(cluster: Cluster) -> Iterator[list[Pods]]:
    """Record the pods each second while the block runs."""
    seen: list[Pods] = []
    stopped, started = threading.Event(), time.monotonic()

    def look() -> None:
        while not stopped.wait(1):
            placed = [pod for pod in cluster.list("v1", "Pod", POD_LABEL) if takes_resources(pod)]
            seen.append(Pods(time.monotonic() - started, len(placed), sum(map(cpu, placed))))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield seen
    stopped.set()
    thread.join()


def takes_resources(pod: Object) -> bool:
    """Return whether a pod occupies resources of a node: from when it is scheduled until it is gone."""
    return "nodeName" in pod["spec"] and pod["status"]["phase"] in ("Pending", "Running")


def cpu(pod: Object) -> float:
    """Return the CPUs that a pod's containers request."""
    texts = [one.get("resources", {}).get("requests", {}).get("cpu", "0") for one in pod["spec"]["containers"]]
    return sum(float(text.removesuffix("m")) * (0.001 if text.endswith("m") else 1) for text in texts)


def write(knative: Side, hpa: Side) -> None:
    """Write the document and its plots."""
    for name, figure in (("latency", latency(knative, hpa)), ("pods", pods(knative, hpa))):
        DOCUMENT.with_name(f"knative-vs-hpa-{name}.svg").write_text(svg(figure), "utf-8")
    environment = Environment(loader=FileSystemLoader(SIDES), undefined=StrictUndefined, trim_blocks=True)  # noqa: S701
    text = environment.get_template("knative-vs-hpa.md").render(
        knative=knative,
        hpa=hpa,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        seconds=SECONDS,
        quiet=QUIET_SECONDS,
        people=max(filter(None, knative.run["over_time"]["people"])),
    )
    DOCUMENT.write_text(text, "utf-8")


def latency(knative: Side, hpa: Side) -> go.Figure:
    figure = report.lines(
        knative.run, {f"p95, {side.name}": side.run["over_time"]["p95"] for side in (knative, hpa)}, "ms", limits=True
    )
    return figure.update_yaxes(title="p95 in a second")


def pods(knative: Side, hpa: Side) -> go.Figure:
    figure = report.lines(knative.run | {"seconds": SECONDS + QUIET_SECONDS}, {}, "")
    for side, color in ((knative, report.BLUE), (hpa, report.ORANGE)):
        x, y = [one.second for one in side.pods], [one.count for one in side.pods]
        line = {"color": color, "width": 1.8, "shape": "hv"}
        figure.add_trace(go.Scatter(x=x, y=y, name=f"pods, {side.name}", mode="lines", line=line))
    return figure.update_yaxes(title="pods")


def svg(figure: go.Figure) -> str:
    """Return the figure as SVG, drawn by Plotly in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content(report.html(figure, first=True))
        drawn: Any = page.evaluate(
            "Plotly.toImage(document.querySelector('.js-plotly-plot'), {format: 'svg', width: 900, height: 340})"
        )
        browser.close()
    return unquote(str(drawn).partition(",")[2]) + "\n"


if __name__ == "__main__":
    main()
