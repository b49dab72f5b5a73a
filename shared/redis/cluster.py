"""Redis in cluster mode: redis-py's RedisCluster, every try of which ends in time.

By itself it asks one node after the other where the slots are now, and waits for each that hangs.

A master does not wait for its replica, and may take with it what it was told in its last moments: whatever stood there
before holds again, until Redis forgets it.
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
    """A cluster of Redis."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of any of its nodes, as redis://[:PASSWORD@]HOST:PORT/0.

        Raises:
            OSError: nobody answers there, or not for a whole cluster.
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
        # AttributeError: it is told to ask a node that has just joined the cluster (redis-py's issue 2432).
        raise RedisRefused from error


def _connect(url: str) -> RedisCluster:
    client = RedisCluster.from_url(
        url,
        connection_class=_Connection,
        socket_timeout=protocol.TIMEOUT_SECONDS,
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
        return super().read_response(*args, timeout=max(protocol.LEAST_SECONDS, protocol.left()), **kwargs)


def _left() -> float:
    left = protocol.left()
    if left <= 0:
        raise redis.TimeoutError("the nodes before took all the time")
    return left
