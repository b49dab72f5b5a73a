"""The cache in Redis. While Redis is unreachable, reads miss, PostgreSQL answers, and writes are retried later.

Writers set the new value; readers set a value only if absent. So a slow reader never overwrites a newer value.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from uuid import UUID

from shared.redis.protocol import Command, Redis, one_try
from shared.runtime import metrics
from shared.runtime.circuit_breaker import CircuitBreaker
from shared.runtime.once import once
from shared.runtime.settings import REDIS_CLUSTER, settings

LATE_SECONDS = 60.0
"""How long failed writes are retried; after that, the old values in Redis have expired."""
LATE_PAUSE_SECONDS = 0.25

log = logging.getLogger(__name__)


def key(user_id: UUID, name: str) -> str:
    """Return the key of a user's entry. The braces keep all keys of a user in one slot of a Redis cluster.

    Metrics label the cache by the first word of the name.
    """
    return f"aegis:{{{user_id}}}:{name}"


def get(*keys: str) -> list[bytes | None]:
    """Return the values of all keys in one round trip; None for missing ones."""
    return ask(keys)[0]


def ask(keys: Sequence[str], command: Command | None = None) -> tuple[list[bytes | None], Any]:
    """Like `get`, and run a command in the same round trip; its result is None if Redis is unreachable."""
    commands: list[Command] = [("GET", key) for key in keys]
    if command:
        commands.append(command)
    answers = attempt(*commands) if commands else []
    for number, name in enumerate(keys):
        outcome = "unavailable" if answers is None else "hit" if answers[number] else "miss"
        metrics.CACHE_READS.inc(_cache_of(name), outcome)
    if answers is None:
        return [None] * len(keys), None
    return answers[: len(keys)], answers[-1] if command else None


def _cache_of(name: str) -> str:
    return name.partition("}:")[2].partition(":")[0] or "other"


def put(*names: str, value: bytes | str, seconds: int) -> None:
    """Set keys after their data has changed. If Redis is unreachable, set them as soon as it is back.

    Redis may be reachable for other processes, which would go on reading the old values.
    """
    puts = {name: _Put(value, seconds) for name in names}
    if puts:
        _write(_Write(_set_all(puts), puts))


def put_unless_contended(name: str, value: bytes | str, *, seconds: int, apart: int) -> None:
    """Set a key like `put`, unless it was set this way within the last `apart` seconds; then empty it for that long.

    Two concurrent changes may arrive here in a different order than they were committed, so neither value is safe to
    cache. If Redis is unreachable, the key is emptied later as well.
    """
    command = ("EVAL", _PUT_UNLESS_CONTENDED, 2, name, f"{name}:put", value, seconds, apart)
    _write(_Write([command], {name: _Put("", apart)}))


_PUT_UNLESS_CONTENDED = """
local contended = redis.call('EXISTS', KEYS[2]) == 1
redis.call('SET', KEYS[2], '', 'EX', ARGV[3])
return redis.call('SET', KEYS[1], contended and '' or ARGV[1], 'EX', contended and ARGV[3] or ARGV[2])
"""


def put_if_absent(name: str, value: bytes | str, *, seconds: int) -> None:
    """Set a key unless it exists, after reading its data."""
    attempt(if_absent(name, value, seconds=seconds))


def if_absent(name: str, value: bytes | str, *, seconds: int) -> Command:
    """Return the command that sets a key unless it exists."""
    return "SET", name, value, "EX", seconds, "NX"


@contextmanager
def puts_after_commit() -> Iterator[None]:
    """Delay the writes in the block until its end, then do them in one round trip; do none if the block raises.

    For a block that ends with a commit, so that no reader sees uncommitted data.
    """
    waiting: list[_Write] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
    if waiting:
        late = {name: put for write in waiting for name, put in write.late.items()}
        _write(_Write([command for write in waiting for command in write.commands], late))


def is_up() -> bool:
    """Return whether Redis answers."""
    # Not PING, because a node answers it even while its cluster is down.
    return _try([("EXISTS", "aegis")]) is not None


def attempt(*commands: Command) -> list[Any] | None:
    """Run commands in one round trip per node and return their results.

    Return None if Redis is unreachable or the circuit breaker is open. Some commands may have run.
    """
    return _try(commands) if _breaker.admits() else None


class _Put(NamedTuple):
    value: bytes | str
    seconds: int


class _Write(NamedTuple):
    commands: Sequence[Command]
    late: dict[str, _Put]
    """The values to set later if this write fails."""


_waiting: "ContextVar[list[_Write] | None]" = ContextVar("waiting", default=None)


def _write(write: _Write) -> None:
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(write)
    elif attempt(*write.commands) is None:
        until = time.monotonic() + LATE_SECONDS
        with _late_lock:
            is_anybody_at_it = bool(_late)
            _late.update((name, (until, put)) for name, put in write.late.items())
        if not is_anybody_at_it:
            threading.Thread(target=_put_late, name="late puts", daemon=True).start()


_late: dict[str, tuple[float, _Put]] = {}
"""For each key that could not be set: until when to retry, and the value."""
_late_lock = threading.Lock()


def _put_late() -> None:
    """Retry the failed writes until none is left."""
    while True:
        with _late_lock:
            now = time.monotonic()
            for name in [name for name, (until, _) in _late.items() if until < now]:
                del _late[name]
            late = dict(_late)
            if not late:
                return
        puts = {name: put for name, (_, put) in late.items()}
        if _try(_set_all(puts)) is None:
            time.sleep(LATE_PAUSE_SECONDS)
            continue
        with _late_lock:
            for name in [name for name, entry in late.items() if _late.get(name) is entry]:
                del _late[name]


def _set_all(puts: dict[str, _Put]) -> list[Command]:
    return [("SET", name, put.value, "EX", put.seconds) for name, put in puts.items()]


def _try(commands: Sequence[Command]) -> list[Any] | None:
    try:
        with one_try():
            answers = client().run(commands)
    except OSError as error:
        _breaker.open()
        metrics.REDIS_ERRORS.inc()
        log.warning("Redis is unreachable; continuing without it", extra={"error": type(error).__name__})
        return None
    _breaker.close()
    return answers


_breaker = CircuitBreaker()
"""Keeps an unreachable Redis from slowing down every request."""


@once
def client() -> Redis:
    """Return the client of this process; use it only within `attempt`."""
    url = settings().redis_url
    if url.startswith(REDIS_CLUSTER):
        from shared.redis.cluster import ClusteredRedis

        return ClusteredRedis(url.replace(REDIS_CLUSTER, "redis", 1))
    from shared.redis.single import SingleRedis

    return SingleRedis(url)
