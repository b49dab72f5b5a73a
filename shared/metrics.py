"""What a process counts, in Prometheus' terms, under the names of the guide's section 6."""

from typing import TYPE_CHECKING

from shared.once import once

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

SERVICE = "user-service"
LABELS = ("service", "function", "method", "endpoint", "status")
# An edge at every threshold that an alert or an objective uses: 0.1, 0.3 and 1 s.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)


@once
def _requests() -> "tuple[Counter, Histogram]":
    # Imported with the first count, after the first answer has left: a cold start does not wait for it.
    from prometheus_client import Counter, Histogram

    return (
        Counter("http_requests_total", "Requests answered.", LABELS),
        Histogram("http_request_duration_seconds", "Seconds from request to answer.", LABELS, buckets=BUCKETS),
    )


def count_request(function: str, method: str, endpoint: str, status: int, seconds: float) -> None:
    """Counts one answered request. `endpoint` is the route, never the path of a request."""
    labels = (SERVICE, function, method, endpoint, str(status))
    requests, durations = _requests()
    requests.labels(*labels).inc()
    durations.labels(*labels).observe(seconds)


def exposition() -> tuple[bytes, str]:
    """All metrics of this process in Prometheus' text format, and its content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    _requests()
    return generate_latest(), CONTENT_TYPE_LATEST
