"""Rate limits: the number of requests per time window for an address, account or mailbox, counted in Redis.

Without Redis each process counts separately, so callers can send a little more.

A window starts with its first request. When it ends, the full number is available again.
"""

import hashlib
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from shared.http.clients import parse_address
from shared.redis import cache
from shared.redis.protocol import Command
from shared.runtime.problems import TooManyRequests
from shared.runtime.settings import settings

Limits = Mapping[str, str]
"""The subjects whose requests are counted, and the limits: {"address": "60/minute", "account": "5/hour;10/day"}."""

SUBJECTS = frozenset({"address", "account", "email", "mailbox", "device"})
MAX_LOCAL_KEYS = 10_000
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_IPV6_DIGITS = 64 // 4
"""Hexadecimal digits of a /64 network. A subscriber has at least one, with all addresses in it."""
_WIDER_IPV6 = ((56 // 4, 2), (48 // 4, 4))
"""Digits of a /56 and a /48, which households and sites get (RFC 6177), and the factor for a limit there.

More than one, because a mobile network gives each of its subscribers one /64.
"""


class Standing(NamedTuple):
    """The state of a limit after a request was counted."""

    whose: str
    amount: int
    seconds: int
    remaining: int
    """Requests left in this window; negative if this request exceeded the limit."""
    reset: int
    """Seconds until the next window."""

    @property
    def headers(self) -> dict[str, str]:
        """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"{self.whose}";q={self.amount};w={self.seconds}',
            "RateLimit": f'"{self.whose}";r={max(0, self.remaining)};t={self.reset}',
        }


def nearest(standings: Sequence[Standing]) -> dict[str, str]:
    """Return the headers for the limit closest to being reached; none if nothing is counted."""
    return min(standings, key=lambda standing: standing.remaining / standing.amount).headers if standings else {}


def check(limits: Limits) -> None:
    """Raise TypeError for limits that would not be counted as written."""
    for whose, rates in limits.items():
        if unknown := set(whose.split("+")) - SUBJECTS:
            raise TypeError(f"a limit is for {', '.join(sorted(unknown))}, an unknown subject")
        for rate in rates.split(";"):
            if not re.fullmatch(rf"[1-9]\d*/({'|'.join(_SECONDS)})", rate):
                raise TypeError(f"{rate} is not a rate such as 60/minute")


def enforce(operation: str, limits: Limits, subjects: Mapping[str, str]) -> list[Standing]:
    """Count one request of an operation against its limits, in one round trip to Redis.

    Args:
        limits: a limit is counted only if all of its subjects have a value.
        subjects: the value of each subject; an empty one is exempt.

    Raises:
        TooManyRequests: a limit is reached; this request then counts against none of them.
    """
    count = Count(operation, limits, subjects)
    _, answer = cache.ask((), count.command)
    return count.standings(answer)


class Count:
    """One request of an operation, counted against its limits by a Redis command; see `enforce`."""

    def __init__(self, operation: str, limits: Limits, subjects: Mapping[str, str]) -> None:
        self._windows = _windows(operation, limits, subjects)

    @property
    def command(self) -> Command | None:
        """The command that counts the request; None if there is nothing to count."""
        if not self._windows:
            return None
        limits = [number for window in self._windows for number in (window.amount, window.seconds)]
        return "EVAL", _COUNT, len(self._windows), *(window.key for window in self._windows), *limits

    def standings(self, answer: list[tuple[int, int]] | None) -> list[Standing]:
        """Return the state of each limit, from Redis' answer to `command` or the counts of this process.

        Raises:
            TooManyRequests
        """
        if answer is None:
            counts = _count_here(self._windows)
        else:
            counts = [(count, milliseconds / 1000) for count, milliseconds in answer]
        standings = [
            Standing(window.whose, window.amount, window.seconds, window.amount - count, max(1, math.ceil(left)))
            for window, (count, left) in zip(self._windows, counts, strict=True)
        ]
        if refused := [standing for standing in standings if standing.remaining < 0]:
            slowest = max(refused, key=lambda standing: standing.reset)
            raise TooManyRequests(slowest.headers | {"Retry-After": str(slowest.reset)})
        return standings


def forgive(operation: str, limits: Limits, subjects: Mapping[str, str]) -> None:
    """Reset the counts that `enforce` made with the same arguments, after a correct attempt."""
    keys = [window.key for window in _windows(operation, limits, subjects)]
    if keys:
        cache.attempt(("DEL", *keys))
        with _lock:
            for key in keys:
                _here.pop(key, None)


def take_back(operation: str, limits: Limits, subjects: Mapping[str, str]) -> None:
    """Take back one request that `enforce` counted with the same arguments, because it failed on our side."""
    keys = [window.key for window in _windows(operation, limits, subjects)]
    if keys:
        cache.attempt(("EVAL", _TAKE_BACK, len(keys), *keys))
        with _lock:
            _here.update({key: (_here[key][0] - 1, _here[key][1]) for key in keys if key in _here})


def address_subject(address: str) -> str:
    """Return what counts for an address: the IPv4 address or the IPv6 /64 network; empty if exempt."""
    parsed = parse_address(address)
    if parsed is None:
        return address
    if any(parsed in network for network in settings().rate_limit_exempt):
        return ""
    if parsed.version == 4:
        return str(parsed)
    return parsed.exploded.replace(":", "")[:_IPV6_DIGITS]


@lru_cache(maxsize=256)
def rate_policy(rate: str) -> tuple[int, int]:
    """Return the requests and seconds of a rate such as "60/minute"."""
    amount, _, unit = rate.partition("/")
    return int(amount), _SECONDS[unit]


class _Window(NamedTuple):
    """One window of a limit, with its Redis key."""

    whose: str
    amount: int
    seconds: int
    key: str


def _windows(operation: str, limits: Limits, subjects: Mapping[str, str]) -> list[_Window]:
    windows: list[_Window] = []
    for whose, rates in limits.items():
        names = whose.split("+")
        if not all(subjects.get(name) for name in names):
            continue
        for network, times in _networks(subjects["address"]) if "address" in names else [("", 1)]:
            values = [network if name == "address" else subjects[name] for name in names]
            # The braces keep the keys of an operation in one slot of a cluster. Hashed, so that no key has an address.
            subject = hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]
            for rate in rates.split(";"):
                amount, seconds = rate_policy(rate)
                key = f"aegis:limit:{{{operation}}}:{whose}:{rate}:{subject}"
                windows.append(_Window(whose, amount * times, seconds, key))
    return windows


def _networks(subject: str) -> list[tuple[str, int]]:
    """Return the networks in which a request of an `address_subject` counts, and the factor for the limit of each."""
    if not re.fullmatch(f"[0-9a-f]{{{_IPV6_DIGITS}}}", subject):
        return [(subject, 1)]
    return [(subject, 1), *((subject[:digits], times) for digits, times in _WIDER_IPV6)]


# Counts a request in all windows, and takes it back if one of them is full. Returns for each window the count with
# this request, and the milliseconds left.
_COUNT = """
local answer, full = {}, false
for number, key in ipairs(KEYS) do
  local count = redis.call('INCR', key)
  if redis.call('PTTL', key) < 0 then redis.call('EXPIRE', key, ARGV[2 * number]) end
  answer[number] = {count, redis.call('PTTL', key)}
  full = full or count > tonumber(ARGV[2 * number - 1])
end
for _, key in ipairs(full and KEYS or {}) do redis.call('DECR', key) end
return answer
"""


# Skips keys that have expired meanwhile: DECR would create them without an expiry.
_TAKE_BACK = """
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then redis.call('DECR', key) end
end
"""

_here: dict[str, tuple[int, float]] = {}
"""For each key, the count and the end of the window."""
_lock = threading.Lock()


def _count_here(windows: Sequence[_Window]) -> list[tuple[int, float]]:
    """Count as `_COUNT` does, but in this process. The counts are cleared before they fill its memory."""
    now = time.monotonic()
    with _lock:
        if len(_here) > MAX_LOCAL_KEYS:
            _here.clear()
        before = [_here.get(window.key, (0, now)) for window in windows]
        counts = [
            (count + 1, end) if end > now else (1, now + window.seconds)
            for window, (count, end) in zip(windows, before, strict=True)
        ]
        if all(count <= window.amount for window, (count, _) in zip(windows, counts, strict=True)):
            _here.update((window.key, count) for window, count in zip(windows, counts, strict=True))
    return [(count, end - now) for count, end in counts]
