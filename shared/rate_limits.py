"""Rate limits: so many requests in a window of time for one address, account or mailbox, counted in Redis.

Without Redis each process counts for itself: callers then get a little more, never nothing and never all.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared import cache
from shared.clients import parse_address
from shared.once import once
from shared.problems import TooManyRequests
from shared.settings import settings

if TYPE_CHECKING:
    from limits.strategies import SlidingWindowCounterRateLimiter

Limits = Mapping[str, str]
"""Whose requests are counted, and how many may come: {"address": "60/minute", "account": "5/hour;10/day"}."""

MAX_LOCAL_KEYS = 10_000
_IPV6_NETWORK_BITS = 64
"""A subscriber has a network of so many bits, and may call from any address in it."""


def enforce(operation: str, limits: Limits, subjects: Mapping[str, str]) -> dict[str, str]:
    """Counts one request of an operation against its limits.

    Args:
        limits: those whose subjects are all known are counted, the others left alone.
        subjects: the value behind each name; none for a subject that shares no limit.

    Returns the headers RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10) of the limit that
    is nearest.

    Raises:
        TooManyRequests: one of the limits is reached; this request counts against those before it alone.
    """
    nearest: dict[str, str] = {}
    fewest = -1.0
    for whose, rate in ((whose, rate) for whose, rates in limits.items() for rate in rates.split(";")):
        names = whose.split("+")
        if not rate or not all(subjects.get(name) for name in names):
            continue
        policy = rate_policy(rate)
        allowed, remaining, reset = _count(rate, operation, whose, _digest(*(subjects[name] for name in names)))
        headers = {
            "RateLimit-Policy": f'"{whose}";q={policy[0]};w={policy[1]}',
            "RateLimit": f'"{whose}";r={remaining};t={reset}',
        }
        if not allowed:
            raise TooManyRequests(headers | {"Retry-After": str(max(1, reset))})
        if fewest < 0 or remaining / policy[0] < fewest:
            nearest, fewest = headers, remaining / policy[0]
    return nearest


def address_subject(address: str) -> str:
    """What is counted for an address: itself, or its network where a subscriber has many; nothing if exempt."""
    parsed = parse_address(address)
    if parsed is None:
        return address
    if any(parsed in network for network in settings().rate_limit_exempt):
        return ""
    if parsed.version == 4:
        return address
    shift = parsed.max_prefixlen - _IPV6_NETWORK_BITS
    return f"{int(parsed) >> shift:x}"


def rate_policy(rate: str) -> tuple[int, int]:
    """Requests and seconds of a rate such as "60/minute"."""
    from limits import parse

    item = parse(rate)
    return item.amount, item.get_expiry()


def _count(rate: str, *subject: str) -> tuple[bool, int, int]:
    """Whether one more may come, how many after it, and in how many seconds the window has moved on."""
    import time

    from limits import parse

    item = parse(rate)

    def hit(limiter: "SlidingWindowCounterRateLimiter") -> tuple[bool, int, int]:
        allowed = limiter.hit(item, *subject)
        stats = limiter.get_window_stats(item, *subject)
        return allowed, stats.remaining, max(0, round(stats.reset_time - time.time()))

    counted = cache.attempt(lambda _client: hit(_shared()))
    return counted if counted is not None else hit(_local())


@once
def _shared() -> "SlidingWindowCounterRateLimiter":
    from limits.storage import RedisStorage
    from limits.strategies import SlidingWindowCounterRateLimiter

    pool = cache.client().connection_pool
    return SlidingWindowCounterRateLimiter(
        RedisStorage(settings().redis_url, connection_pool=pool, key_prefix="aegis:limit")
    )


_local_limiters: list[Any] = []


def _local() -> "SlidingWindowCounterRateLimiter":
    """This process's own counts. They start anew before they fill its memory."""
    from limits.storage import MemoryStorage
    from limits.strategies import SlidingWindowCounterRateLimiter

    if not _local_limiters or len(_local_limiters[0].storage.storage) > MAX_LOCAL_KEYS:
        _local_limiters[:] = [SlidingWindowCounterRateLimiter(MemoryStorage())]
    limiter: SlidingWindowCounterRateLimiter = _local_limiters[0]
    return limiter


def _digest(*parts: str) -> str:
    # No address of a person stands in a key of Redis.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
