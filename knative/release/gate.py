"""Decide whether a new revision can take more traffic, with production's alert rules restricted to that revision."""

import re
from typing import Any, NamedTuple

import urllib3

from knative.kubernetes.cluster import Object
from knative.terminal import Refused

TIMEOUT_SECONDS = 10.0
TRIES = 3
FOR_A_QUANTILE = 20
"""Minimum number of requests: with fewer, the 95th percentile is the slowest request, possibly a cold start."""

# Selectors of metrics from our processes, and of metrics from Kubernetes about our pods.
_OWN = 'service="user-service"'
_KUBERNETES = 'namespace="aegis-user-service"'
_REVISION = "serving_knative_dev_revision"


class Alert(NamedTuple):
    name: str
    subject: str
    """The function, pod or service that it is about."""
    value: float

    def __str__(self) -> str:
        return f"{self.name} of {self.subject} ({self.value:.4g})"


class Gate:
    """Prometheus and the alert rules of the release."""

    def __init__(self, url: str, objects: list[Object]) -> None:
        self._url = url.rstrip("/")
        self._rules = [
            rule
            for one in objects
            if one["kind"] == "PrometheusRule"
            for group in one["spec"]["groups"]
            for rule in group["rules"]
            if "alert" in rule
        ]
        self.before: frozenset[tuple[str, str]] = frozenset()
        """Alerts that already fire: the release may fix them."""

    def problems(self) -> list[str]:
        """Return why the gate cannot judge. Also remember which alerts already fire."""
        if not self._rules:
            return ["the environment has no alert rules (component monitoring): deploy it with --no-gate"]
        try:
            self.before = frozenset((alert.name, alert.subject) for alert in self._firing())
        except Refused as error:
            return [str(error)]
        return []

    def alerts(self, number: int, seconds: int) -> list[Alert]:
        """Return rules that hold for a release's revisions over the last seconds, and critical alerts that are new.

        Raises:
            Refused: Prometheus does not answer.
        """
        found = [alert for alert in self._firing() if (alert.name, alert.subject) not in self.before]
        series = f"http_request_duration_seconds_count{{{_OWN}, {_of(number)}}}"
        requests = dict(self._query(f"sum by (function) (increase({series}[{seconds}s]))"))
        for rule in self._rules:
            expression = of_release(rule["expr"], number, seconds)
            least = FOR_A_QUANTILE if "histogram_quantile" in expression else 0
            for subject, value in self._query(expression) if expression else ():
                if requests.get(subject, 0) >= least:
                    found.append(Alert(rule["alert"], subject, value))
        return found

    def sees(self, number: int) -> bool:
        """Return whether Prometheus has metrics of the revisions of this release."""
        return bool(self._query(f"count(up{{{_of(number)}}})"))

    def requests(self, number: int) -> tuple[int, int]:
        """Return how many requests the revisions of this release answered, and how many of them with a 5xx."""
        counts = []
        for status in ("", ', status=~"5.."'):
            series = f'http_requests_total{{{_OWN}, {_of(number)}, endpoint!~"/health.*|/metrics"{status}}}'
            total = self._query(f"sum(max_over_time({series}[1h]))")
            counts.append(int(total[0][1]) if total else 0)
        return counts[0], counts[1]

    def _firing(self) -> list[Alert]:
        """Return firing critical alerts. Others, such as a late backup, are no reason to revert a release."""
        names = "|".join(rule["alert"] for rule in self._rules if rule["labels"]["severity"] == "critical")
        return [
            Alert(labels["alertname"], _subject(labels), 1.0)
            for labels in self._labels(f'ALERTS{{alertstate="firing", alertname=~"{names}"}}')
        ]

    def _query(self, expression: str) -> list[tuple[str, float]]:
        """Return the subject and value of each series."""
        return [(_subject(one["metric"]), float(one["value"][1])) for one in self._ask(expression)]

    def _labels(self, expression: str) -> list[dict[str, str]]:
        return [one["metric"] for one in self._ask(expression)]

    def _ask(self, expression: str) -> list[dict[str, Any]]:
        try:
            answer = urllib3.request(
                "GET",
                f"{self._url}/api/v1/query",
                fields={"query": expression},
                timeout=TIMEOUT_SECONDS,
                retries=urllib3.Retry(TRIES, backoff_factor=0.5),
            )
            if answer.status != 200:
                raise ValueError(answer.data.decode("utf-8", "replace")[:200])
            found: list[dict[str, Any]] = answer.json()["data"]["result"]
        except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
            reason = getattr(error, "reason", error)
            raise Refused(f"Prometheus at {self._url} does not answer: {reason}") from error
        return found


def of_release(expression: str, number: int, seconds: int) -> str:
    """Limit a rule's expression to a release's revisions and the last seconds; return "" if that is impossible."""
    pods = f'pod=~".+-r{number}-deployment-.+"'
    narrowed = expression.replace(_OWN, f"{_OWN}, {_of(number)}").replace(_KUBERNETES, f"{_KUBERNETES}, {pods}")
    # A rule without a window, such as that of dead letters, is about the whole service. It counts when it fires.
    return re.sub(r"\[\w+\]", f"[{seconds}s]", narrowed) if narrowed != expression and "[" in expression else ""


def _of(number: int) -> str:
    return f'{_REVISION}=~".+-r{number}"'


def _subject(labels: dict[str, str]) -> str:
    return labels.get("function") or labels.get("pod") or labels.get("service") or "the service"
