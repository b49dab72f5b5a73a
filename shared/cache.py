"""Redis, which may vanish at any moment: a read then misses, what changed is put later, and PostgreSQL answers.

Whoever changes something puts the new value; whoever only read it puts it if absent. So a slow reader never
overwrites what a writer has put since.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from uuid import UUID

from shared import metrics
from shared.once import once
from shared.pauses import Pause
from shared.settings import REDIS_CLUSTER, settings

if TYPE_CHECKING:
    import redis

TIMEOUT_SECONDS = 0.25
TRY_SECONDS = 2 * TIMEOUT_SECONDS
"""For all that one try waits for, however many nodes it asks."""
LATE_SECONDS = 60.0
"""What could not be put is tried again for so long: then Redis has forgotten by itself what stood there before."""
LATE_PAUSE_SECONDS = 0.25

T = TypeVar("T")

log = logging.getLogger(__name__)


def key(user_id: UUID, name: str) -> str:
    """The key of something of one user; the braces keep one user's keys in one slot of a Redis cluster.

    Metrics tell the caches apart by the first word of the name.
    """
    return f"aegis:{{{user_id}}}:{name}"


def get(*keys: str) -> list[bytes | None]:
    """The values of all keys in one round trip; None for what is not there."""
    values = _run("MGET", *keys)
    for number, name in enumerate(keys):
        outcome = "unavailable" if values is None else "hit" if values[number] else "miss"
        metrics.CACHE_READS.inc(_cache_of(name), outcome)
    return [None] * len(keys) if values is None else values


def _cache_of(name: str) -> str:
    return name.partition("}:")[2].partition(":")[0] or "other"


def put(*names: str, value: bytes | str, seconds: int) -> None:
    """Sets keys, for those who changed what they tell; as soon as Redis is back, where it is away.

    For it may only hang, or be out of reach from here, and the old values stand there for others to read.
    """
    puts = {name: _Put(value, seconds) for name in names}
    if puts:
        _write(_Write(lambda redis: _set_all(redis, puts), puts))


def put_unless_contended(name: str, value: bytes | str, *, seconds: int, apart: int) -> None:
    """Sets a key as `put` does; empties it for `apart` seconds where it was set so already within as many seconds.

    Two who change one thing may come here in the other order than they committed in: then no value is right. Nor is
    this one when Redis was away for it.
    """
    arguments = (_PUT_UNLESS_CONTENDED, 2, name, f"{name}:put", value, seconds, apart)
    _write(_Write(lambda redis: redis.execute_command("EVAL", *arguments), {name: _Put("", apart)}))


_PUT_UNLESS_CONTENDED = """
local contended = redis.call('EXISTS', KEYS[2]) == 1
redis.call('SET', KEYS[2], '', 'EX', ARGV[3])
return redis.call('SET', KEYS[1], contended and '' or ARGV[1], 'EX', contended and ARGV[3] or ARGV[2])
"""


def put_if_absent(name: str, value: bytes | str, *, seconds: int) -> None:
    """Sets a key unless it is set, for those who read what it tells."""
    _run("SET", name, value, "EX", seconds, "NX")


@contextmanager
def puts_after_commit() -> Iterator[None]:
    """Keeps back what is put in the block until its end, for a block that commits there; drops it when that fails."""
    waiting: list[_Write] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
    for write in waiting:
        _write(write)


def is_up() -> bool:
    """Whether Redis answers."""
    # Of a key, as a node answers PING also while its cluster is down.
    return _try(lambda redis: redis.execute_command("EXISTS", "aegis")) is not None


def attempt(work: Callable[["redis.Redis"], T]) -> T | None:
    """What `work` gets from Redis; None when Redis is away, or was at the last try and it is not time for another."""
    return _try(work) if _pause.admits() else None


class _Put(NamedTuple):
    value: bytes | str
    seconds: int


class _Write(NamedTuple):
    work: "Callable[[redis.Redis], object]"
    late: dict[str, _Put]
    """What is right to put in its place when it could not be done."""


_waiting: "ContextVar[list[_Write] | None]" = ContextVar("waiting", default=None)


def _write(write: _Write) -> None:
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(write)
    elif attempt(write.work) is None:
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
        if _try(lambda redis: _set_all(redis, puts)) is None:  # noqa: B023
            time.sleep(LATE_PAUSE_SECONDS)
            continue
        with _late_lock:
            for name in [name for name, entry in late.items() if _late.get(name) is entry]:
                del _late[name]


def _set_all(redis: "redis.Redis", puts: dict[str, _Put]) -> list[Any]:
    pipeline = redis.pipeline(transaction=False)
    for name, put in puts.items():
        pipeline.set(name, put.value, ex=put.seconds)
    return pipeline.execute()


def _run(*command: Any) -> Any:
    return attempt(lambda redis: redis.execute_command(*command))


def _try(work: Callable[["redis.Redis"], T]) -> T | None:
    from redis import RedisError
    from redis.exceptions import RedisClusterException

    token = _until.set(time.monotonic() + TRY_SECONDS)
    try:
        result = work(client())
    except (RedisError, RedisClusterException, OSError, AttributeError) as error:
        # AttributeError: its client is told to ask a node that has just joined the cluster (redis-py's issue 2432).
        _pause.begin()
        metrics.REDIS_ERRORS.inc()
        log.warning("Redis is away; doing without it", extra={"error": type(error).__name__})
        return None
    finally:
        _until.reset(token)
    _pause.end()
    return result


def left() -> float:
    """How many seconds a wait for Redis may take; none, or fewer, when the try in hand has had its time."""
    return min(TIMEOUT_SECONDS, _until.get() - time.monotonic())


_until: ContextVar[float] = ContextVar("until", default=math.inf)

_pause = Pause()
"""So that an absent Redis does not slow every request."""


@once
def client() -> "redis.Redis":
    """The client of this process; call it within `attempt`."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    url = settings().redis_url
    if url.startswith(REDIS_CLUSTER):
        from shared import redis_cluster

        # No subclass, but with the same commands.
        return cast("redis.Redis", redis_cluster.connect(url.replace(REDIS_CLUSTER, "redis", 1)))
    return redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),  # a restarted server has closed our connections: one more try opens a new one
    )
