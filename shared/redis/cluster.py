"""Redis in cluster mode: redis-py's RedisCluster, with a time limit on every try.

Without it, RedisCluster asks one node after another where the slots are, and waits for each one that hangs.

Replication is asynchronous, so a master that fails can lose its latest writes. The older values are then served again
until they expire.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from shared.redis import protocol
from shared.redis.protocol import Command, RedisRefused


class ClusteredRedis:
    """A Redis cluster."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: any of its nodes, as redis://[:PASSWORD@]HOST:PORT/0.

        Raises:
            OSError: the node does not answer, or does not know the whole cluster.
        """
        with _errors_as_refusal():
            self.cluster = _connect(url)

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """See `protocol.Redis`."""
        with _errors_as_refusal():
            pipeline = self.cluster.pipeline()
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute()
            return answers


@contextmanager
def _errors_as_refusal() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, RedisClusterException, AttributeError) as error:
        # AttributeError: it was redirected to a node that has just joined the cluster (redis-py issue 2432).
        raise RedisRefused from error


def _connect(url: str) -> RedisCluster:
    client = RedisCluster.from_url(
        url,
        connection_class=_Connection,
        socket_timeout=protocol.TIMEOUT_SECONDS,
        protocol=2,  # with 3 a server can announce maintenance, and the client would wait longer
        retry=Retry(NoBackoff(), 1),  # if a master is gone, the second try reaches the promoted replica
        dynamic_startup_nodes=False,
    )
    # Any known node can tell the slots if the one in the URL is down; that one helps if all others were replaced.
    client.nodes_manager.startup_nodes |= client.nodes_manager.nodes_cache
    return client


class _Connection(redis.Connection):
    """A connection that waits no longer than the current try has left."""

    @property  # type: ignore[misc]
    def socket_connect_timeout(self) -> float:
        return _left()

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        left = _left()
        if self._sock:
            self._sock.settimeout(left)
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        return super().read_response(*args, timeout=max(protocol.LEAST_SECONDS, protocol.left()), **kwargs)


def _left() -> float:
    left = protocol.left()
    if left <= 0:
        raise redis.TimeoutError("the previous nodes used up the time")
    return left
