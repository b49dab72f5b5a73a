"""Redis in cluster mode: redis-py's RedisCluster, every try of which ends in time.

By itself it asks one node after the other where the slots are now, and waits for each that hangs.

A master does not wait for its replica, and may take with it what it was told in its last moments: whatever stood there
before holds again, until Redis forgets it.
"""

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from shared import cache

LEAST_SECONDS = 0.001
"""For an answer, even where no time is left: then the connection is closed, and nobody else reads it."""


def connect(url: str) -> RedisCluster:
    """A client of the cluster that has a node at `url`, as redis://[:PASSWORD@]HOST:PORT/0.

    Raises:
        RedisError, RedisClusterException: nobody answers there, or not for a whole cluster.
    """
    client = RedisCluster.from_url(
        url,
        connection_class=_Connection,
        socket_timeout=cache.TIMEOUT_SECONDS,
        protocol=2,  # in 3 a server may announce its maintenance, for which the client would wait longer
        retry=Retry(NoBackoff(), 1),  # where a master is gone: one more try asks the replica that took its place
        dynamic_startup_nodes=False,
    )
    # Who is asked for the slots: the nodes of now, should the one in the URL be away; and that one, a name that finds
    # others later, should all of these be gone.
    client.nodes_manager.startup_nodes |= client.nodes_manager.nodes_cache
    return client


class _Connection(redis.Connection):
    """Waits for its node no longer than the try in hand has left."""

    @property  # type: ignore[misc]
    def socket_connect_timeout(self) -> float:
        return _left()

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        left = _left()
        if self._sock:
            self._sock.settimeout(left)
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        return super().read_response(*args, timeout=max(LEAST_SECONDS, cache.left()), **kwargs)


def _left() -> float:
    left = cache.left()
    if left <= 0:
        raise redis.TimeoutError("the nodes before took all the time")
    return left
