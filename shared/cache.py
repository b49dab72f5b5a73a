"""Redis, which may vanish at any moment: a read then misses, a write is dropped, and PostgreSQL answers.

Whoever changes something puts the new value; whoever only read it puts it if absent. So a slow reader never
overwrites what a writer has put since.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from shared.once import once
from shared.pauses import Pause
from shared.settings import settings

if TYPE_CHECKING:
    import redis

TIMEOUT_SECONDS = 0.25

T = TypeVar("T")

log = logging.getLogger(__name__)


def key(user_id: UUID, name: str) -> str:
    """The key of something of one user; the braces keep one user's keys in one slot of a Redis cluster."""
    return f"aegis:{{{user_id}}}:{name}"


def get(*keys: str) -> list[bytes | None]:
    """The values of all keys in one round trip; None for what is not there."""
    values = _run("MGET", *keys)
    return [None] * len(keys) if values is None else values


def put(*names: str, value: bytes | str, seconds: int) -> None:
    """Sets keys, for those who changed what they tell; tried even in a pause, as the old value may still be there."""

    def set_all(redis: "redis.Redis") -> None:
        pipeline = redis.pipeline(transaction=False)
        for name in names:
            pipeline.set(name, value, ex=seconds)
        pipeline.execute()

    if names:
        _write(set_all)


def put_unless_contended(name: str, value: bytes | str, *, seconds: int, apart: int) -> None:
    """Sets a key as `put` does; empties it for `apart` seconds where it was set so already within as many seconds.

    Two who change one thing may come here in the other order than they committed in: then no value is right.
    """
    arguments = (_PUT_UNLESS_CONTENDED, 2, name, f"{name}:put", value, seconds, apart)
    _write(lambda redis: redis.execute_command("EVAL", *arguments))


_PUT_UNLESS_CONTENDED = """
local contended = redis.call('EXISTS', KEYS[2]) == 1
redis.call('SET', KEYS[2], '', 'EX', ARGV[3])
redis.call('SET', KEYS[1], contended and '' or ARGV[1], 'EX', contended and ARGV[3] or ARGV[2])
"""


def put_if_absent(name: str, value: bytes | str, *, seconds: int) -> None:
    """Sets a key unless it is set, for those who read what it tells."""
    _run("SET", name, value, "EX", seconds, "NX")


@contextmanager
def puts_after_commit() -> Iterator[None]:
    """Keeps back what is put in the block until its end, for a block that commits there; drops it when that fails."""
    waiting: list[Callable[[redis.Redis], object]] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
    for write in waiting:
        _try(write)


def is_up() -> bool:
    """Whether Redis answers."""
    return _try(lambda redis: redis.ping()) is not None


def attempt(work: Callable[["redis.Redis"], T]) -> T | None:
    """What `work` gets from Redis; None when Redis is away, or was at the last try and it is not time for another."""
    return _try(work) if _pause.admits() else None


def _write(work: "Callable[[redis.Redis], object]") -> None:
    waiting = _waiting.get()
    if waiting is None:
        _try(work)
    else:
        waiting.append(work)


_waiting: "ContextVar[list[Callable[[redis.Redis], object]] | None]" = ContextVar("waiting", default=None)


def _run(*command: Any) -> Any:
    return attempt(lambda redis: redis.execute_command(*command))


def _try(work: Callable[["redis.Redis"], T]) -> T | None:
    connected = client()
    from redis import RedisError

    try:
        result = work(connected)
    except (RedisError, OSError) as error:
        _pause.begin()
        log.warning("Redis is away; doing without it", extra={"error": type(error).__name__})
        return None
    _pause.end()
    return result


_pause = Pause()
"""So that an absent Redis does not slow every request."""


@once
def client() -> "redis.Redis":
    """The client of this process; call it within `attempt`."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        settings().redis_url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),  # a restarted server has closed our connections: one more try opens a new one
    )
