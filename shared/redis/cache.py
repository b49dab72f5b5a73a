"""Redis, which may vanish at any moment: a read then misses, what changed is put later, and PostgreSQL answers.

Whoever changes something puts the new value; whoever only read it puts it if absent. So a slow reader never
overwrites what a writer has put since.
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
"""What could not be put is tried again for so long: then Redis has forgotten by itself what stood there before."""
LATE_PAUSE_SECONDS = 0.25

log = logging.getLogger(__name__)


def key(user_id: UUID, name: str) -> str:
    """The key of something of one user; the braces keep one user's keys in one slot of a Redis cluster.

    Metrics tell the caches apart by the first word of the name.
    """
    return f"aegis:{{{user_id}}}:{name}"


def get(*keys: str) -> list[bytes | None]:
    """The values of all keys in one round trip; None for what is not there."""
    return ask(keys)[0]


def ask(keys: Sequence[str], command: Command | None = None) -> tuple[list[bytes | None], Any]:
    """The values of keys as `get` has them, and the answer to a command, None when Redis is away; in one round trip."""
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
    """Sets keys, for those who changed what they tell; as soon as Redis is back, where it is away.

    For it may only hang, or be out of reach from here, and the old values stand there for others to read.
    """
    puts = {name: _Put(value, seconds) for name in names}
    if puts:
        _write(_Write(_set_all(puts), puts))


def put_unless_contended(name: str, value: bytes | str, *, seconds: int, apart: int) -> None:
    """Sets a key as `put` does; empties it for `apart` seconds where it was set so already within as many seconds.

    Two who change one thing may come here in the other order than they committed in: then no value is right. Nor is
    this one when Redis was away for it.
    """
    command = ("EVAL", _PUT_UNLESS_CONTENDED, 2, name, f"{name}:put", value, seconds, apart)
    _write(_Write([command], {name: _Put("", apart)}))


_PUT_UNLESS_CONTENDED = """
local contended = redis.call('EXISTS', KEYS[2]) == 1
redis.call('SET', KEYS[2], '', 'EX', ARGV[3])
return redis.call('SET', KEYS[1], contended and '' or ARGV[1], 'EX', contended and ARGV[3] or ARGV[2])
"""


def put_if_absent(name: str, value: bytes | str, *, seconds: int) -> None:
    """Sets a key unless it is set, for those who read what it tells."""
    attempt(if_absent(name, value, seconds=seconds))


def if_absent(name: str, value: bytes | str, *, seconds: int) -> Command:
    """Sets a key unless it is set, among other commands."""
    return "SET", name, value, "EX", seconds, "NX"


@contextmanager
def puts_after_commit() -> Iterator[None]:
    """Puts at the end of the block what is put in it, in one round trip; nothing when the block raises.

    For a block that ends with a commit: no reader sees what is not committed.
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
    """Whether Redis answers."""
    # Of a key, as a node answers PING also while its cluster is down.
    return _try([("EXISTS", "aegis")]) is not None


def attempt(*commands: Command) -> list[Any] | None:
    """The answers to commands, in one round trip for each node that they concern.

    None when Redis is away, or was at the last try and it is not time for another: some of them may have been done.
    """
    return _try(commands) if _breaker.admits() else None


class _Put(NamedTuple):
    value: bytes | str
    seconds: int


class _Write(NamedTuple):
    commands: Sequence[Command]
    late: dict[str, _Put]
    """What is right to put in its place when it could not be done."""


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
"""Of each key that could not be put: until when it is tried again, and what is put then."""
_late_lock = threading.Lock()


def _put_late() -> None:
    """Tries to put what is late, until nothing is."""
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
        log.warning("Redis is away; doing without it", extra={"error": type(error).__name__})
        return None
    _breaker.close()
    return answers


_breaker = CircuitBreaker()
"""So that an absent Redis does not slow every request."""


@once
def client() -> Redis:
    """The client of this process; call it within `attempt`."""
    url = settings().redis_url
    if url.startswith(REDIS_CLUSTER):
        from shared.redis.cluster import ClusteredRedis

        return ClusteredRedis(url.replace(REDIS_CLUSTER, "redis", 1))
    from shared.redis.single import SingleRedis

    return SingleRedis(url)
