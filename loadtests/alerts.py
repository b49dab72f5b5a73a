"""The alerts of production as the judge of a load test: the same PrometheusRule file, three ways to ask it."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "knative" / "components" / "monitoring" / "alerts.yaml"
SCALE = 30
"""A Prometheus of our own counts a minute as 2 s: windows and `for` are divided by this."""
LATENCY, ERRORS = "UserServiceHighLatency", "UserServiceHighErrorRate"


class CannotJudge(Exception):
    """The run says nothing; the message says why."""


@dataclass(frozen=True)
class Alert:
    """An alert that is pending or firing for one function."""

    name: str
    function: str
    state: str
    value: float


@dataclass(frozen=True)
class Sample:
    """One answered request."""

    second: int
    function: str
    seconds: float
    failed: bool


class Judge(Protocol):
    description: str

    def alerts(self, samples: list[Sample], second: int) -> list[Alert]:
        """The alerts that are not quiet now, `second` seconds into the run."""

    def pods(self) -> dict[str, int]:
        """Pods of each function now; empty where that is not known."""


def rules() -> list[dict[str, Any]]:
    """The alerting rules on the requests of each function, and what befalls its pods and events."""
    spec = yaml.safe_load(RULES.read_text("utf-8"))["spec"]
    return [rule for group in spec["groups"] if group["name"] == "user-service" for rule in group["rules"]]


def seconds(duration: str) -> int:
    """Seconds of a Prometheus duration such as 5m or 30s."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def threshold(name: str) -> float:
    """The number that an alert compares with."""
    expression = next(rule["expr"] for rule in rules() if rule["alert"] == name)
    return float(re.findall(r">\s*([0-9.]+)\s*$", expression.strip())[0])


class Prometheus:
    """A Prometheus that evaluates the rules."""

    def __init__(self, url: str, description: str) -> None:
        self._url = url
        self.description = description

    def alerts(self, samples: list[Sample], second: int) -> list[Alert]:
        names = {rule["alert"] for rule in rules()}
        return [
            Alert(
                name=alert["labels"]["alertname"],
                function=alert["labels"].get("function") or alert["labels"].get("pod", ""),
                state=alert["state"],
                value=float(alert["value"]),
            )
            for alert in self._get("alerts")["alerts"]
            if alert["labels"]["alertname"] in names
        ]

    def pods(self) -> dict[str, int]:
        expression = 'max by (kn_service_name) (kn_revision_pods_count{k8s_namespace_name="aegis-user-service"})'
        found = self._get("query?query=" + urllib.parse.quote(expression))["result"]
        return {one["metric"]["kn_service_name"].replace("-", "_"): int(one["value"][1]) for one in found}

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}", timeout=5) as response:  # noqa: S310
                data: dict[str, Any] = json.load(response)["data"]
                return data
        except (OSError, ValueError, KeyError) as error:
            raise CannotJudge(f"Prometheus at {self._url} does not answer: {error}") from error


class LocustOnly:
    """The same thresholds on Locust's own latencies, over the last seconds."""

    description = "NO PROMETHEUS: THE WEAKER CHECK, LOCUST'S OWN LATENCIES AGAINST THE THRESHOLDS OF THE RULES"
    window = 10

    def alerts(self, samples: list[Sample], second: int) -> list[Alert]:
        recent: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.second > second - self.window:
                recent.setdefault(sample.function, []).append(sample)
        found = []
        for function, own in recent.items():
            latency = percentile([sample.seconds for sample in own], 0.95)
            if latency > threshold(LATENCY):
                found.append(Alert(LATENCY, function, "firing", latency))
            errors = sum(sample.failed for sample in own) / len(own)
            if errors > threshold(ERRORS):
                found.append(Alert(ERRORS, function, "firing", errors))
        return found

    def pods(self) -> dict[str, int]:
        return {}


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@contextmanager
def judge(url: str, run_seconds: int) -> Iterator[Judge]:
    """The best judge there is for a run against this URL.

    Raises:
        CannotJudge: the run is shorter than the alerts take to fire.
    """
    if named := os.environ.get("PROMETHEUS_URL"):
        longest = max(seconds(rule["for"]) for rule in rules())
        if run_seconds <= longest:
            raise CannotJudge(
                f"A run of {run_seconds} s cannot see an alert that takes {longest} s to fire: set DURATION."
            )
        yield Prometheus(named.rstrip("/"), f"the alerts of Prometheus at {named}")
        return
    targets = ROOT / (os.environ.get("DATA_DIR") or ".local") / "targets.json"
    binary = shutil.which("prometheus")
    if binary and targets.exists() and url in targets.read_text():
        with own_prometheus(binary, targets) as address:
            yield Prometheus(
                address, f"a Prometheus of this run's own; every 'for' and window of the rules is divided by {SCALE}"
            )
        return
    yield LocustOnly()


@contextmanager
def own_prometheus(binary: str, targets: Path) -> Iterator[str]:
    """Starts a Prometheus that scrapes the functions of `make up` every second, and ends it after the block."""
    from knative.local.servers import LOOPBACK, free_port, is_listening

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{folder}/rules.yaml"],
            "scrape_configs": [{"job_name": "functions", "file_sd_configs": [{"files": [str(targets)]}]}],
        }
        Path(folder, "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        Path(folder, "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "scaled", "rules": scaled_rules()}]}))
        process = subprocess.Popen(
            [binary, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={LOOPBACK}:{port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 20
            while not is_listening(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CannotJudge("The Prometheus of this run's own does not start.")
                time.sleep(0.1)
            yield f"http://{LOOPBACK}:{port}"
        finally:
            process.terminate()
            process.wait(20)


def scaled_rules() -> list[dict[str, Any]]:
    def shorter(match: re.Match[str]) -> str:
        return f"[{max(2, seconds(match[1]) // SCALE)}s]"

    return [
        rule | {"expr": re.sub(r"\[(\w+)\]", shorter, rule["expr"]), "for": f"{seconds(rule['for']) // SCALE}s"}
        for rule in rules()
    ]
