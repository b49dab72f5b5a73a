"""Reads on a replica of PostgreSQL, where there is one; what it cannot answer, or must not, the primary does.

How far it is behind, the last transaction in it tells: the relay makes one each second, also while nobody writes. So
a replica that has lost its primary, or was promoted, is found too old within seconds and not asked any more.
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
    """What `work` reads in one read-only snapshot: of the replica, where the request in hand may.

    `work` runs again, on the primary, when the replica fails it, as by ending a query that keeps it from following
    the primary.

    Raises:
        ServiceUnavailable: as `transaction` does.
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
    """The replica is further behind than it may be."""


class Replica(Server):
    """How a process deals with the replica: the primary must still have time after it."""

    timeout = FAIR_SECONDS
    is_lagging = False
    """Whether it was, when it was asked last."""

    def begin(self, connection: pg8000.dbapi.Connection) -> None:
        """Begins a transaction, if the replica is near enough."""
        ((lag,),) = connection.execute_simple(f"{self.beginning()}; {_LAG}").rows
        self.is_lagging = lag is None or lag > settings().replica_max_lag_seconds
        if self.is_lagging:
            raise Lagging

    def fail(self, error: Exception) -> None:
        """It did not answer, or was lagging."""
        self.breaker.open()
        self.is_lagging = isinstance(error, Lagging)
        log.warning("the replica is away or too far behind; reading from the primary", extra={"error": str(error)})


server = Replica()


@once
def engine() -> Engine:
    """The pool of connections to the replica."""
    return new_pool(settings().replica_database_url, server)
