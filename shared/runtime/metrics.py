"""The Prometheus metrics of a process; docs/metrics.md explains each.

No label contains a value that a caller chose, because the process keeps every series.
"""

import contextlib
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any, Literal

from shared.runtime.once import once

SERVICE = "user-service"
# Include every threshold that an alert or objective uses: 0.1, 0.3 and 1 s.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
MAX_EARLY = 1000

_all: "list[Metric]" = []
_early: "list[tuple[Metric, str, tuple[str, ...], float]]" = []
"""Changes made before prometheus_client was imported."""
_lock = threading.Lock()


class Metric:
    """A metric with the labels `service` and `function` and any given ones.

    prometheus_client is imported after the first response is sent, so that a cold start does not wait for it. Changes
    made before that are kept until then.
    """

    def __init__(
        self,
        kind: Literal["Counter", "Gauge", "Histogram"],
        name: str,
        documentation: str,
        labels: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.kind, self.labels = kind, labels
        self._arguments = {"name": name, "documentation": documentation, **options}
        self._series: dict[tuple[str, ...], Any] = {}
        self._family: Any = None
        _all.append(self)

    def inc(self, *labels: str, by: float = 1) -> None:
        self._change("inc", labels, by)

    def set(self, value: float, *labels: str) -> None:
        self._change("set", labels, value)

    def observe(self, value: float, *labels: str) -> None:
        self._change("observe", labels, value)

    def _change(self, how: str, labels: tuple[str, ...], value: float) -> None:
        series = self._series.get(labels)
        if series is None:
            with _lock:
                if self._family is None:
                    _early.append((self, how, labels, value))
                else:
                    series = self._of(labels)
            if series is None:
                if len(_early) > MAX_EARLY:  # in a process that serves no requests
                    load()
                return
        getattr(series, how)(value)

    def _of(self, labels: tuple[str, ...]) -> Any:
        # Metrics such as http_requests_total set the label function themselves.
        own = labels if "function" in self.labels else (os.environ.get("FUNCTION_TARGET", ""), *labels)
        self._series[labels] = series = self._family.labels(SERVICE, *own)
        return series

    def make(self) -> None:
        import prometheus_client

        names = ("service", *(() if "function" in self.labels else ("function",)), *self.labels)
        self._family = getattr(prometheus_client, self.kind)(labelnames=names, **self._arguments)
        # Start at 0: rate() would miss the first increment of a series that starts with it.
        if self.kind == "Counter" and not self.labels:
            self._of(())


_OF_A_REQUEST = ("function", "method", "endpoint", "status")
REQUESTS = Metric("Counter", "http_requests_total", "Requests answered.", _OF_A_REQUEST)
DURATIONS = Metric(
    "Histogram", "http_request_duration_seconds", "Seconds from request to answer.", _OF_A_REQUEST, buckets=BUCKETS
)
LOGINS = Metric("Counter", "logins_total", "Login attempts.", ("outcome",))
CACHE_READS = Metric("Counter", "cache_reads_total", "Cache entries read.", ("cache", "outcome"))
REDIS_ERRORS = Metric("Counter", "redis_errors_total", "Calls that Redis did not answer.")
POOL_IN_USE = Metric("Gauge", "database_pool_connections_in_use", "Connections in a transaction.")
POOL_OPEN = Metric("Gauge", "database_pool_connections_open", "Connections to PostgreSQL.")
POOL_MAX = Metric("Gauge", "database_pool_connections_max", "Maximum number of connections in the pool.")
POOL_WAITS = Metric(
    "Histogram",
    "database_pool_wait_seconds",
    "Seconds to begin a transaction: waiting for a free connection or opening one, and BEGIN.",
    buckets=BUCKETS,
)
TOLERANT_READS = Metric(
    "Counter", "tolerant_reads_total", "Reads that may be seconds old, if there is a replica.", ("outcome",)
)
POOL_TIMEOUTS = Metric("Counter", "database_pool_timeouts_total", "Transactions refused: no connection was free.")
HASHES_WAITING = Metric("Gauge", "password_hashes_waiting", "Passwords waiting to be hashed.")
HASHES_SHED = Metric("Counter", "password_hashes_shed_total", "Passwords not hashed: the wait was too long.")
BREACHED_CHECKS = Metric(
    "Counter", "breached_password_checks_total", "Passwords looked up in the list of breached ones.", ("outcome",)
)
MESSAGES_WITHHELD = Metric(
    "Counter", "messages_withheld_total", "Mails and texts not sent because a limit was reached.", ("channel", "limit")
)
EVENT_OUTCOMES = Metric("Counter", "event_outcomes_total", "Event deliveries.", ("type", "outcome"))
PROVIDER_REQUESTS = Metric("Counter", "provider_requests_total", "Requests to a provider.", ("provider", "outcome"))
PROVIDER_DURATIONS = Metric(
    "Histogram", "provider_request_duration_seconds", "Seconds to the response.", ("provider",), buckets=BUCKETS
)
START_TO_READY = Metric(
    "Gauge",
    "process_start_to_ready_seconds",
    "Seconds from the start of the process to its first successful probe.",
)
BUILD = Metric("Gauge", "aegis_build_info", "The running version: always 1.", ("version", "revision", "python"))

_LOGIN_FUNCTIONS = frozenset({"login", "login_with_second_factor", "login_with_passkey"})
_LOGIN_OUTCOMES = {
    "": "success",
    "InvalidCredentials": "wrong_credentials",
    "SecondFactorRequired": "second_factor_asked",
    "InvalidSecondFactor": "wrong_second_factor",
    "ChallengeOver": "challenge_over",
    "InvalidPasskey": "wrong_passkey",
    "TooManyRequests": "rate_limited",
    "ServiceUnavailable": "unavailable",
}


def count_request(function: str, method: str, endpoint: str, status: int, seconds: float) -> None:
    """Count a request after its response was sent. `endpoint` is the route, never the path of the request."""
    load()
    labels = (function, method, endpoint, str(status))
    REQUESTS.inc(*labels)
    DURATIONS.observe(seconds, *labels)


def count_login(function: str, problem: str) -> None:
    """Count a login attempt, if the function is a login function. `problem` is the name of the problem, if any."""
    if function in _LOGIN_FUNCTIONS:
        LOGINS.inc(_LOGIN_OUTCOMES.get(problem, "refused"))


@once
def load() -> None:
    """Create the metrics, and apply the changes made before."""
    import prometheus_client

    # Would add a second series for each counter and histogram.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    with _lock:
        for metric in _all:
            metric.make()
        early = [*_early]
        _early.clear()
    for metric, how, labels, value in early:
        metric._change(how, labels, value)
    BUILD.set(1, os.environ.get("VERSION", ""), os.environ.get("K_REVISION", ""), platform.python_version())


def exposition() -> tuple[bytes, str]:
    """Return all metrics of this process in Prometheus' text format, and its content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

    load()
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST


_started_at = time.monotonic()


def note_start() -> None:
    """Look up when this process started; its forks measure from then."""
    global _started_at  # noqa: PLW0603
    # proc_pid_stat(5), field 22: in clock ticks since boot. Without /proc, the time of import counts.
    with contextlib.suppress(OSError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        _started_at = time.monotonic() - age


@once
def is_ready() -> None:
    """Record the time since the process started."""
    START_TO_READY.set(time.monotonic() - _started_at)
