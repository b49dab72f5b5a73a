"""Judge load tests by production's alerts: the same PrometheusRule files, evaluated in one of three ways."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import urllib3
import yaml

from loadtests import rules
from loadtests.rules import ERRORS, LATENCY, SCALE

ROOT = Path(__file__).parents[1]
START_SECONDS = 30.0
PODS = """
sum by (name) (label_replace(
  kube_pod_status_phase{namespace="aegis-user-service", phase=~"Pending|Running"},
  "name", "$1", "pod", "(.+)-[^-]+-deployment-[^-]+-[^-]+"))
"""


class CannotJudge(Exception):
    """The run cannot be judged. The message says why."""


class Subject(NamedTuple):
    """An alert and what it is about: a function, a pod, or the service."""

    alert: str
    about: str

    def __str__(self) -> str:
        return f"{self.alert} for {self.about}"


@dataclass(frozen=True)
class Alert:
    """An alert that is pending or firing."""

    subject: Subject
    state: str
    value: float


@dataclass(frozen=True)
class Sample:
    """One answered request."""

    function: str
    seconds: float
    failed: bool


Samples = Mapping[int, Sequence[Sample]]
"""By second of the run."""


class Judge(Protocol):
    description: str
    before: frozenset[Subject]
    """Alerts that were active before the run. They do not count against it."""

    def alerts(self, samples: Samples, second: int) -> list[Alert]:
        """Return the alerts that are active `second` seconds into the run."""

    def pods(self) -> dict[str, int] | None:
        """Return the current number of pods by function, without zeros, or None if unknown."""


class Prometheus:
    """A Prometheus that evaluates the rules."""

    def __init__(self, url: str, description: str, *, before: Sequence[str], sees_pods: bool) -> None:
        """
        Args:
            before: states, such as firing, in which an alert that exists before the run does not count against it.
        """
        self._url = url
        self._sees_pods = sees_pods
        self._names = {rule["alert"] for rule in rules.judging()}
        self.description = description
        self.before = frozenset(alert.subject for alert in self.alerts({}, 0) if alert.state in before)

    def alerts(self, samples: Samples, second: int) -> list[Alert]:
        return [
            Alert(Subject(alert["labels"]["alertname"], about(alert["labels"])), alert["state"], float(alert["value"]))
            for alert in ask(self._url, "alerts")["alerts"]
            if alert["labels"]["alertname"] in self._names
        ]

    def pods(self) -> dict[str, int] | None:
        if not self._sees_pods:
            return None
        counts = {
            one["metric"].get("name"): int(one["value"][1]) for one in ask(self._url, "query", query=PODS)["result"]
        }
        return {name: count for name, count in counts.items() if name and count}


class LocustOnly:
    """Compares Locust's own latencies and errors over the last seconds with the thresholds of the rules."""

    description = "NO PROMETHEUS: THE WEAKER CHECK OF LOCUST'S OWN LATENCIES AGAINST THE THRESHOLDS OF THE RULES"
    before: frozenset[Subject] = frozenset()
    window = 10
    fewest = 20
    """Minimum requests of a function in a window: with fewer, the 95th percentile is the slowest request."""

    def alerts(self, samples: Samples, second: int) -> list[Alert]:
        recent: dict[str, list[Sample]] = {}
        for moment in range(second - self.window + 1, second + 1):
            for sample in samples.get(moment, ()):
                recent.setdefault(sample.function, []).append(sample)
        found = []
        for function, own in recent.items():
            if len(own) < self.fewest:
                continue
            latency = percentile([sample.seconds for sample in own], 0.95)
            if latency > rules.threshold(LATENCY):
                found.append(Alert(Subject(LATENCY, function), "firing", latency))
            errors = sum(sample.failed for sample in own) / len(own)
            if errors > rules.threshold(ERRORS):
                found.append(Alert(Subject(ERRORS, function), "firing", errors))
        return found

    def pods(self) -> None:
        return None


def about(labels: Mapping[str, str]) -> str:
    """Return what an alert is about, from its labels."""
    named = (labels[name] for name in ("function", "pod", "kn_service_name", "trigger") if labels.get(name))
    others = (f"{name} {value}" for name, value in sorted(labels.items()) if name not in _OF_EVERY_ALERT)
    return next(named, None) or ", ".join(others) or "the service"


_OF_EVERY_ALERT = {"alertname", "severity", "service", "namespace", "job", "instance"}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@contextmanager
def judge(url: str, run_seconds: int) -> Iterator[Judge]:
    """Yield the best available judge for a run against this URL.

    Raises:
        CannotJudge: the run is too short for the alerts on latency and errors to fire, or Prometheus does not answer.
    """
    if named := os.environ.get("PROMETHEUS_URL"):
        longest = max(rules.fires_after(rule) for rule in rules.alerting() if rule["alert"] in (LATENCY, ERRORS))
        if run_seconds <= longest:
            raise CannotJudge(
                f"A run of {run_seconds} s cannot see an alert that takes {longest:.0f} s to fire: "
                f"set DURATION={longest + 60:.0f}."
            )
        # A pending alert may come from an earlier load that this run continues, so it counts.
        yield Prometheus(named.rstrip("/"), f"the alerts of Prometheus at {named}", before=["firing"], sees_pods=True)
        return
    binary = shutil.which("prometheus")
    if binary and is_local(url):
        with own_prometheus(binary, _targets(), run_seconds) as address:
            # The service was idle so far: alerts pending now wait for metrics that only a cluster has.
            left_out = rules.too_long_for(run_seconds)
            yield Prometheus(
                address,
                f"a Prometheus started for this run; every 'for' and window of the rules is divided by {SCALE}"
                + (f"; without {', '.join(left_out)}, which look back further than the run lasts" if left_out else ""),
                before=["pending", "firing"],
                sees_pods=False,
            )
        return
    yield LocustOnly()


def is_local(url: str) -> bool:
    """Return whether `make up` serves this URL from DATA_DIR."""
    named = url.replace("//127.0.0.1:", "//localhost:")  # the name that make up uses
    return _targets().exists() and f'"{named}"' in _targets().read_text()


def _targets() -> Path:
    return ROOT / (os.environ.get("DATA_DIR") or ".local") / "targets.json"


@contextmanager
def own_prometheus(binary: str, targets: Path, run_seconds: int) -> Iterator[str]:
    """Run a Prometheus that scrapes the functions of `make up` every second, until the block ends."""
    from knative.local.servers import LOOPBACK, free_port

    address = f"{LOOPBACK}:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{folder}/rules.yaml"],
            "scrape_configs": [{"job_name": "functions", "file_sd_configs": [{"files": [str(targets)]}]}],
        }
        Path(folder, "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        Path(folder, "rules.yaml").write_text(yaml.safe_dump({"groups": rules.scaled(run_seconds=run_seconds)}))
        log = Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [binary, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address={address}"],
                stdout=output,
                stderr=output,
            )  # fmt: skip
        try:
            url, deadline = f"http://{address}", time.monotonic() + START_SECONDS
            while not _has_seen_all(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CannotJudge(f"The Prometheus for this run does not start:\n{log.read_text()[-1000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _has_seen_all(url: str) -> bool:
    """Return whether each target was scraped and each rule evaluated after that, so that idle alerts are known."""
    try:
        targets = ask(url, "targets", tries=0)["activeTargets"]
        evaluations = [group["lastEvaluation"] for group in ask(url, "rules", tries=0)["groups"]]
        scraped = float(
            ask(url, "query", tries=0, query="max(min_over_time(timestamp(up)[2m:1s]))")["result"][0]["value"][1]
        )
    except (CannotJudge, IndexError):  # not listening yet, or nothing scraped yet
        return False
    return all(target["health"] != "unknown" for target in targets) and all(
        datetime.fromisoformat(moment).timestamp() > scraped + 1 for moment in evaluations
    )


def ask(url: str, path: str, tries: int = 3, **query: str) -> Any:
    """Return the data in an answer of Prometheus' API.

    Raises:
        CannotJudge: Prometheus does not answer.
    """
    try:
        answer = urllib3.request(
            "GET",
            f"{url}/api/v1/{path}",
            fields=query,
            timeout=10.0,
            retries=urllib3.Retry(tries, backoff_factor=0.5),
        )
        return answer.json()["data"]
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        raise CannotJudge(f"Prometheus at {url} does not answer: {reason}") from error
