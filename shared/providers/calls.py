"""Requests to providers of mails, texts or facts, with a limit on their total time."""

import contextlib
import socket
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from shared.runtime import metrics
from shared.runtime.problems import ServiceUnavailable

CONNECT_SECONDS = 2.0
"""For DNS, connecting and TLS. If they take longer, nothing is sent."""
RETRY_AFTER_SECONDS = 5
MAX_RETRY_AFTER_SECONDS = 60
"""The maximum, whatever the provider asks for: an event that waits blocks the next ones."""


class Provider(NamedTuple):
    name: str
    """The label in the metrics."""
    title: str
    """The name in error messages, such as "The mail provider"."""

    def __str__(self) -> str:
        return self.title


class _Bounded(HTTPConnection):
    """Applies its timeouts to connecting and to a response as a whole; a socket applies them to each part."""

    def connect(self) -> None:
        started = time.monotonic()
        super().connect()
        if time.monotonic() - started > (self.timeout or 0):
            self.close()
            raise TimeoutError

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in urllib3
        too_late, transport = threading.Event(), self.sock

        def cut_off() -> None:
            too_late.set()
            with contextlib.suppress(OSError):
                # Not the method of the TLS socket, which would interfere with the read in progress.
                socket.socket.shutdown(transport, socket.SHUT_RDWR)

        watchdog = threading.Timer(self.timeout or 0, cut_off)
        watchdog.daemon = True
        watchdog.start()
        try:
            return super().getresponse()
        finally:
            watchdog.cancel()
            if too_late.is_set():  # what arrived until then may look like a complete response
                raise TimeoutError


class _BoundedTls(_Bounded, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Bounded


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedTls


pools = urllib3.PoolManager(retries=False, maxsize=64)
"""Connections that apply the total timeout to a response as a whole."""
pools.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


def ask(provider: Provider, method: str, url: str, *, seconds: float, **request: Any) -> urllib3.BaseHTTPResponse:
    """Send a request to a provider and return the response, whatever its status.

    Args:
        seconds: the total limit, including connecting. Together with the database work, less than a Trigger's timeout.
        request: headers, and json or body, as urllib3 takes them.

    Raises:
        ServiceUnavailable: the provider cannot be reached, or its response is not complete in time.
    """
    timeout = urllib3.Timeout(connect=CONNECT_SECONDS, total=seconds)
    started, outcome = time.monotonic(), "broken_off"
    try:
        response = pools.request(method, url, timeout=timeout, **request)
        outcome = f"{response.status // 100}xx"
    except urllib3.exceptions.HTTPError as error:
        match error:
            case urllib3.exceptions.NewConnectionError():
                fault, outcome = "cannot be reached", "unreachable"
            case urllib3.exceptions.TimeoutError():
                fault, outcome = "does not answer in time", "timeout"
            case _:
                fault = f"failed to answer ({type(error).__name__})"
        raise ServiceUnavailable(f"{provider} {fault}.", retry_after=RETRY_AFTER_SECONDS) from error
    finally:
        metrics.PROVIDER_REQUESTS.inc(provider.name, outcome)
        metrics.PROVIDER_DURATIONS.observe(time.monotonic() - started, provider.name)
    return response


def not_now(provider: Provider, response: urllib3.BaseHTTPResponse) -> ServiceUnavailable:
    """Return the error for a response that may differ later, with the provider's Retry-After, within bounds."""
    seconds = _retry_after(response.headers.get("Retry-After", ""))
    return ServiceUnavailable(f"{provider} answered {response.status}.", retry_after=seconds)


def _retry_after(value: str) -> int:
    """Return the seconds of a Retry-After (RFC 9110, 10.2.3), a number or a date."""
    try:
        if value.isdecimal():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return RETRY_AFTER_SECONDS
    return round(max(1, min(MAX_RETRY_AFTER_SECONDS, seconds)))
