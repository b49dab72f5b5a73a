"""One request to a provider of mails, texts or facts: answered within a time, whatever the provider does."""

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
"""For finding the provider, connecting and TLS: nothing is sent later than that."""
RETRY_AFTER_SECONDS = 5
MAX_RETRY_AFTER_SECONDS = 60
"""A provider that asks for more is asked again all the same: an event waits in front of the next ones."""


class Provider(NamedTuple):
    name: str
    """In the metrics."""
    title: str
    """As in "The mail provider", for whoever reads why an event was not delivered."""

    def __str__(self) -> str:
        return self.title


class _Bounded(HTTPConnection):
    """Holds its timeouts for connecting and for an answer as a whole; a socket has them for each part that arrives."""

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
                # Not what TLS makes of it, which would touch what is being read.
                socket.socket.shutdown(transport, socket.SHUT_RDWR)

        watchdog = threading.Timer(self.timeout or 0, cut_off)
        watchdog.daemon = True
        watchdog.start()
        try:
            return super().getresponse()
        finally:
            watchdog.cancel()
            if too_late.is_set():  # what came until then may pass for an answer that ends there
                raise TimeoutError


class _BoundedTls(_Bounded, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Bounded


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedTls


pools = urllib3.PoolManager(retries=False, maxsize=64)
"""Connections that hold the total of a timeout for an answer as a whole."""
pools.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


def ask(provider: Provider, method: str, url: str, *, seconds: float, **request: Any) -> urllib3.BaseHTTPResponse:
    """The answer of a provider, of any status.

    Args:
        seconds: for all of it, connecting included. With the database before and after, less than a Trigger gives.
        request: headers, and json or body, as urllib3 takes them.

    Raises:
        ServiceUnavailable: it cannot be reached, or its answer is not complete in time.
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
                fault = f"breaks off ({type(error).__name__})"
        raise ServiceUnavailable(f"{provider} {fault}.", retry_after=RETRY_AFTER_SECONDS) from error
    finally:
        metrics.PROVIDER_REQUESTS.inc(provider.name, outcome)
        metrics.PROVIDER_DURATIONS.observe(time.monotonic() - started, provider.name)
    return response


def not_now(provider: Provider, response: urllib3.BaseHTTPResponse) -> ServiceUnavailable:
    """What to raise on an answer that may be another one later: at the time that the provider names, within bounds."""
    seconds = _retry_after(response.headers.get("Retry-After", ""))
    return ServiceUnavailable(f"{provider} answered {response.status}.", retry_after=seconds)


def _retry_after(value: str) -> int:
    """Seconds of a Retry-After (RFC 9110, 10.2.3): a number, or a date."""
    try:
        if value.isdecimal():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return RETRY_AFTER_SECONDS
    return round(max(1, min(MAX_RETRY_AFTER_SECONDS, seconds)))
