"""The outbox relay: sends committed events to Kafka, in order, and marks each when the broker has it.

    python -m shared.events.relay

Woken by NOTIFY. Several may run: one leads, by an advisory lock that PostgreSQL frees when its connection ends, and
the others stand by. A relay that dies between the broker's answer and its own commit has sent events that the next
one sends again: consumers know them by their id.
"""

import logging
import logging.config
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from prometheus_client import REGISTRY
from sqlalchemy import ARRAY, Connection, NullPool, Text, Uuid, any_, cast, create_engine, func, literal, update
from sqlalchemy import select as select_rows
from sqlalchemy.dialects.postgresql import insert

from shared.events import consumer_lag, kafka, outbox, outbox_metrics
from shared.events.outbox_metrics import ERRORS, LEADS, SENT
from shared.events.types import SOURCE
from shared.postgresql import driver, partitions, transactions
from shared.postgresql.tables import outbox as events
from shared.postgresql.tables import relayed_topic
from shared.runtime import logs, probes
from shared.runtime.probes import Heart
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import InvalidSettings, load, settings
from shared.runtime.stopping import stopped_by

BATCH = 500
IDLE_SECONDS = 1.0
"""How long to wait for a NOTIFY before looking anyway, and between two tries to lead."""
SEND_SECONDS = 5.0
PAUSE_SECONDS = 1.0
UPKEEP_SECONDS = 3600.0
LOST = timedelta(days=1)
"""Of so long events are sent again to a broker that has lost some: more would keep the new ones waiting."""

_LOCK = 7_253_417_910
# A relay whose machine has vanished loses the lead as soon as this tells the server.
_KEEPALIVES = {"tcp_keepalives_idle": 1, "tcp_keepalives_interval": 1, "tcp_keepalives_count": 2}

log = logging.getLogger("relay")


class Session(NamedTuple):
    """A connection to PostgreSQL that is not shared, and the socket on which it is notified."""

    connection: Connection
    notifications: Any
    transport: socket.socket


def run(stopped: threading.Event, heart: Heart) -> None:
    """Relays until stopped, through every failure of the database and the broker."""
    while not stopped.is_set():
        heart.beat()
        try:
            with _session() as session:
                while not (leads := _lead(session.connection)) and not stopped.wait(IDLE_SECONDS):
                    heart.beat()
                if leads:
                    LEADS.set(1)
                    _relay(session, stopped, heart)
        except Exception as error:
            cause = _cause(error)
            ERRORS[cause].inc()
            log.log(
                logging.ERROR if cause == "bug" else logging.WARNING,
                "waiting for the database or the broker",
                extra={"error": type(error).__name__},
                exc_info=cause == "bug",
            )
            stopped.wait(PAUSE_SECONDS)
        finally:
            LEADS.set(0)


def _cause(error: Exception) -> str:
    if isinstance(error, KafkaError):
        return "broker"
    return "database" if isinstance(error, ServiceUnavailable) or transactions.is_unavailable(error) else "bug"


@contextmanager
def _session() -> Iterator[Session]:
    """A session of its own, not through PgBouncer, which can pass on neither a LISTEN nor a lock of the session."""
    raw, transport = driver.connect(settings().database_url, timeout=SEND_SECONDS)
    engine = create_engine("postgresql+pg8000://", creator=lambda: raw, poolclass=NullPool, hide_parameters=True)
    with engine.connect() as connection:
        with connection.begin():
            for name, value in _KEEPALIVES.items():
                connection.exec_driver_sql(f"SET {name} = {value}")
            connection.exec_driver_sql("LISTEN outbox")
        yield Session(connection, raw.notifications, transport)


def _lead(connection: Connection) -> bool:
    """Whether this relay is the one that sends, from now on until its session ends."""
    with connection.begin():
        return bool(connection.scalar(select_rows(func.pg_try_advisory_lock(_LOCK))))


def _relay(session: Session, stopped: threading.Event, heart: Heart) -> None:
    with broker() as (admin, producer):
        leader = Leader(session.connection, admin, producer)
        log.info("relaying")
        upkeep_at = 0.0
        while not stopped.is_set():
            heart.beat()
            if time.monotonic() >= upkeep_at:
                partitions.keep_days(datetime.now(UTC))
                upkeep_at = time.monotonic() + UPKEEP_SECONDS
            session.notifications.clear()
            sent = leader.send_batch()
            if not sent and settings().replica_database_url:
                _tick(session.connection)
            # Notifications that came with the answers to statements are not on the socket any more.
            if sent < BATCH and not session.notifications:
                select.select([session.transport], [], [], IDLE_SECONDS)


def _tick(connection: Connection) -> None:
    """A transaction that changes nothing: by the time of the last, it shows how far a replica is behind."""
    with connection.begin():
        connection.execute(select_rows(func.pg_current_xact_id()))


@contextmanager
def broker() -> Iterator[tuple[KafkaAdminClient, KafkaProducer]]:
    """Clients of the broker that give up after seconds; by themselves they wait for up to two minutes."""
    producer = kafka.connected(
        KafkaProducer,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        batch_size=64 * 1024,
        max_block_ms=int(SEND_SECONDS * 1000),
        delivery_timeout_ms=int(SEND_SECONDS * 1000),
    )
    with kafka.connected(KafkaAdminClient) as admin, producer as connected:
        yield admin, connected


class Leader:
    """The relay that sends. It knows the topic that it fills: the id, and where each partition ended."""

    def __init__(self, connection: Connection, admin: KafkaAdminClient, producer: KafkaProducer) -> None:
        self._connection, self._admin, self._producer = connection, admin, producer
        with connection.begin():
            known = connection.execute(
                select_rows(*relayed_topic.c["topic_id", "ends"]).where(relayed_topic.c.name == kafka.EVENTS)
            ).first()
        self._topic_id: str = known.topic_id if known else ""
        self._ends: list[int] = list(known.ends) if known else []

    def send_batch(self) -> int:
        """Sends the oldest events that are not sent, and marks them. Returns how many there were.

        A broker that has lost events is sent those of the last day again.
        """
        if (topic_id := kafka.ensure_topic(self._admin)) != self._topic_id:
            if self._topic_id:
                _send_again()
            self._topic_id, self._ends = topic_id, []
            self._mark([])
        rows = self._oldest_unsent()
        if rows:
            is_complete = self._send(rows)
            self._mark(rows)
            SENT.inc(len(rows))
            if not is_complete:
                _send_again()
        return len(rows)

    def _oldest_unsent(self) -> Sequence[Any]:
        unsent = (
            select_rows(*events.c["id", "type", "subject", "request_id", "occurred_at"], cast(events.c.data, Text))
            .where(events.c.sent_at.is_(None))
            .order_by(events.c.position)
            .limit(BATCH)
        )
        with self._connection.begin():
            return self._connection.execute(unsent).all()

    def _send(self, rows: Sequence[Any]) -> bool:
        """Sends events and waits until the broker has all of them. Returns whether it still has those from before.

        Each answer is asked for: the producer's flush does not raise when it fails.
        """
        futures = [
            self._producer.send(
                kafka.EVENTS,
                key=str(row.subject).encode(),
                value=row.data.encode(),
                headers=kafka.to_headers(attributes(row)),
            )
            for row in rows
        ]
        deadline = time.monotonic() + SEND_SECONDS
        is_complete = True
        for future in futures:
            sent = future.get(timeout=max(0.0, deadline - time.monotonic()))
            self._ends.extend([0] * (sent.partition + 1 - len(self._ends)))
            is_complete &= sent.offset >= self._ends[sent.partition]
            self._ends[sent.partition] = sent.offset + 1
        return is_complete

    def _mark(self, rows: Sequence[Any]) -> None:
        state = {"topic_id": self._topic_id, "ends": self._ends}
        remember = (
            insert(relayed_topic)
            .values(name=kafka.EVENTS, **state)
            .on_conflict_do_update(index_elements=["name"], set_=state)
        )
        with self._connection.begin():
            self._connection.execute(remember)
            if rows:
                times = [row.occurred_at for row in rows]
                self._connection.execute(
                    update(events)
                    .where(
                        events.c.occurred_at.between(min(times), max(times)),
                        events.c.id == any_(literal([row.id for row in rows], ARRAY(Uuid))),
                    )
                    .values(sent_at=func.now())
                )


def _send_again() -> None:
    log.warning("the broker has lost events; sending those of the last day again")
    outbox.send_again(datetime.now(UTC) - LOST)


def attributes(row: Any) -> dict[str, str]:
    """The CloudEvents attributes of an event in the outbox."""
    return {
        "specversion": "1.0",
        "id": str(row.id),
        "source": SOURCE,
        "type": row.type,
        "subject": str(row.subject),
        "time": row.occurred_at.isoformat(),
        "partitionkey": str(row.subject),
        "requestid": row.request_id,
    }


def main() -> None:
    try:
        logging.config.dictConfig(logs.configuration(load(os.environ, ["database", "kafka"])))
    except InvalidSettings as error:
        sys.exit("\n".join(["the relay cannot start with these settings:", *error.problems]))
    stopped = stopped_by(signal.SIGTERM)
    outbox_metrics.register()
    REGISTRY.register(consumer_lag.LagCollector())
    probes.serve(heart := Heart())
    run(stopped, heart)


if __name__ == "__main__":
    main()
