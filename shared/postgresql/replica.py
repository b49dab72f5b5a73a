"""Reads on a PostgreSQL replica, if there is one. The primary answers what the replica cannot or must not.

The age of the replica's last transaction is its lag: the relay makes a transaction each second, even while nobody
writes. So a replica that was promoted or has lost its primary is found too old within seconds, and is no longer used.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import pg8000.dbapi
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared.postgresql import own_writes
from shared.postgresql.pool import FAIR_SECONDS, Server, begun, new_pool
from shared.postgresql.transactions import snapshot, transaction
from shared.runtime import metrics
from shared.runtime.once import once
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import settings

T = TypeVar("T")

_LAG = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8"

log = logging.getLogger(__name__)


def read(work: Callable[[Connection], T]) -> T:
    """Run `work` in one read-only snapshot, on the replica if the current request allows it.

    If the replica fails, for example because the query conflicts with replication, `work` runs again on the primary.

    Raises:
        ServiceUnavailable: see `transaction`.
    """
    with snapshot():
        if settings().replica_database_url:
            if not own_writes.may_lag.get():
                metrics.TOLERANT_READS.inc("own_writes")
            else:
                try:
                    with begun(engine()) as connection:
                        result = work(connection)
                except (DBAPIError, PoolTimeout, OSError, ServiceUnavailable):
                    metrics.TOLERANT_READS.inc("lagging" if server.is_lagging else "unavailable")
                else:
                    metrics.TOLERANT_READS.inc("replica")
                    return result
        with transaction() as connection:
            return work(connection)


class Lagging(pg8000.dbapi.OperationalError):  # type: ignore[misc]
    """The replica is too far behind."""


class Replica(Server):
    """The replica; its timeout leaves time to ask the primary afterwards."""

    timeout = FAIR_SECONDS
    is_lagging = False
    """Whether the replica was lagging at the last try."""

    def begin(self, connection: pg8000.dbapi.Connection) -> None:
        """Begin a transaction, if the replica is recent enough."""
        ((lag,),) = connection.execute_simple(f"{self.beginning()}; {_LAG}").rows
        self.is_lagging = lag is None or lag > settings().replica_max_lag_seconds
        if self.is_lagging:
            raise Lagging

    def fail(self, error: Exception) -> None:
        """Record that the replica did not answer or was lagging."""
        self.breaker.open()
        self.is_lagging = isinstance(error, Lagging)
        log.warning("the replica is unreachable or too old; reading from the primary", extra={"error": str(error)})


server = Replica()


@once
def engine() -> Engine:
    """Return the connection pool of the replica."""
    return new_pool(settings().replica_database_url, server)
