"""One delivery of an event to a function: a binary CloudEvent over HTTP (CloudEvents HTTP binding 1.0.2, 3.1)."""

import base64
from typing import NamedTuple
from urllib.parse import quote

import urllib3

from shared.events import kafka
from shared.events.delivery_tokens import authorization
from shared.providers.calls import pools
from shared.runtime.manifests import Trigger

MAX_BACKOFF_SECONDS = 60.0
# The statuses that Knative retries, and 401: functions and dispatcher have different keys while a key is replaced. Any
# other status from 300 to 499 makes the event a dead letter at once.
RETRIED_STATUSES = frozenset({401, 404, 408, 409, 429})
ASKING_TO_WAIT = frozenset({429, 503})
MAX_ERROR_BYTES = 1024

# CloudEvents HTTP binding 1.0.2, 3.1.3.2: all other characters of a header value are percent-encoded.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


class Failure(NamedTuple):
    """Why a delivery failed."""

    error: str
    """The status, or the kind of error if there was no response."""
    body: bytes = b""
    """The beginning of the response."""
    retry_after: float = 0.0
    """The seconds that the response asks to wait."""

    @property
    def is_retried(self) -> bool:
        """Return whether the same delivery can succeed later."""
        return not self.error.isdigit() or int(self.error) >= 500 or int(self.error) in RETRIED_STATUSES

    def attributes(self, function_url: str) -> dict[str, str]:
        """Return Knative's extension attributes of a dead letter, encoded as by its Kafka broker."""
        reason = {"knativeerrordest": function_url, "knativeerrorcode": self.error}
        return reason | ({"knativeerrordata": base64.b64encode(self.body).decode()} if self.body else {})


def post(url: str, service: str, attributes: dict[str, str], data: bytes, timeout_seconds: float) -> Failure | None:
    """POST an event to a service as a binary CloudEvent. Return None if the service accepted it."""
    headers = {f"ce-{name}": quote(value, safe=_HEADER_SAFE) for name, value in attributes.items()}
    try:
        response = pools.request(
            "POST",
            url,
            body=data,
            headers={**headers, **authorization(service), "Content-Type": kafka.CONTENT_TYPE},
            timeout=urllib3.Timeout(total=timeout_seconds),
            redirect=False,
        )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return Failure(type(error).__name__)
    if response.status < 300:
        return None
    return Failure(str(response.status), response.data[:MAX_ERROR_BYTES], retry_after(response))


def retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Return the seconds that a 429 or 503 asks to wait (RFC 9110, 10.2.3), up to MAX_BACKOFF_SECONDS."""
    if response.status not in ASKING_TO_WAIT:
        return 0.0
    try:
        return min(MAX_BACKOFF_SECONDS, urllib3.Retry().get_retry_after(response) or 0.0)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def backoff(trigger: Trigger, attempt: int) -> float:
    """Return the seconds to wait after an attempt; the first attempt is 0."""
    factor = 2.0 ** min(attempt, 64) if trigger.backoff_policy == "exponential" else attempt + 1
    return min(MAX_BACKOFF_SECONDS, trigger.backoff_seconds * factor)
