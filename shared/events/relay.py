"""The outbox relay: sends committed events to Kafka in order, and marks each one when the broker has stored it.

    python -m shared.events.relay

NOTIFY wakes it. You can run several: one holds an advisory lock and leads, the others stand by. PostgreSQL releases the
lock when the leader's connection ends. If a relay dies after the broker's answer and before it has marked the events,
the next one sends them again, and consumers recognise them by their id.
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
from sqlalchemy import (
    ARRAY,
    Connection,
    DateTime,
    NullPool,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    create_engine,
    func,
    update,
)
from sqlalchemy import select as select_rows
from sqlalchemy.dialects.postgresql import insert

from shared.events import consumer_lag, kafka, outbox, outbox_metrics
from shared.events.outbox_metrics import ERRORS, LEADS, SENT
from shared.events.types import SOURCE
from shared.postgresql import driver, partitions, transactions
from shared.postgresql.pool import keeping_prepared, prepared
from shared.postgresql.tables import outbox as events
from shared.postgresql.tables import relayed_topic
from shared.runtime import logs, probes
from shared.runtime.probes import Heart
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import InvalidSettings, load, settings
from shared.runtime.stopping import stopped_by

BATCH = 1000
GATHER_SECONDS = 0.01
"""The shortest time between the starts of two batches. A single event does not wait."""
IDLE_SECONDS = 1.0
"""How often to look for events without a NOTIFY, to check the topic, and to try to become the leader."""
SEND_SECONDS = 5.0
PAUSE_SECONDS = 1.0
UPKEEP_SECONDS = 3600.0
LOST = timedelta(days=1)
"""If the broker has lost events, those of this time are sent again. More would delay new events."""

_LOCK = 7_253_417_910
# Tells the server that the machine of a relay is gone, so that another relay can lead.
_KEEPALIVES = {"tcp_keepalives_idle": 1, "tcp_keepalives_interval": 1, "tcp_keepalives_count": 2}

log = logging.getLogger("relay")

# Built once, because composing a statement takes longer than executing it.
_OLDEST_UNSENT = prepared(
    select_rows(*events.c["id", "type", "subject", "request_id", "occurred_at"], cast(events.c.data, Text))
    .where(events.c.sent_at.is_(None))
    .order_by(events.c.position)
    .limit(BATCH)
)
_REMEMBER = insert(relayed_topic).values(
    name=kafka.EVENTS, topic_id=bindparam("topic"), ends=bindparam("new_ends", type_=relayed_topic.c.ends.type)
)
_REMEMBER = _REMEMBER.on_conflict_do_update(
    index_elements=["name"], set_=dict(_REMEMBER.excluded["topic_id", "ends"].items())
)
_MARK = prepared(
    transactions.together(
        _REMEMBER,
        update(events)
        .where(
            events.c.occurred_at.between(
                bindparam("first", type_=DateTime(timezone=True)), bindparam("last", type_=DateTime(timezone=True))
            ),
            events.c.id == any_(bindparam("ids", type_=ARRAY(Uuid))),
        )
        .values(sent_at=func.now()),
    )
)


class Session(NamedTuple):
    """A connection of its own to PostgreSQL, and the socket that receives its notifications."""

    connection: Connection
    notifications: Any
    transport: socket.socket


def run(stopped: threading.Event, heart: Heart) -> None:
    """Relay until stopped, and survive every failure of the database and the broker."""
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
    """Open a session directly to PostgreSQL, because PgBouncer supports neither LISTEN nor session locks.

    Each statement is a transaction of its own: one round trip instead of three.
    """
    raw, transport = driver.connect(settings().database_url, timeout=SEND_SECONDS)
    engine = create_engine(
        "postgresql+pg8000://",
        creator=lambda: raw,
        poolclass=NullPool,
        hide_parameters=True,
        isolation_level="AUTOCOMMIT",
    )
    with keeping_prepared(engine).connect() as connection:
        for name, value in _KEEPALIVES.items():
            connection.exec_driver_sql(f"SET {name} = {value}")
        connection.exec_driver_sql("LISTEN outbox")
        yield Session(connection, raw.notifications, transport)


def _lead(connection: Connection) -> bool:
    """Try to become the leader until the session ends; return whether that succeeded."""
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
            began = time.monotonic()
            sent = leader.send_batch()
            if not sent and settings().replica_database_url:
                _tick(session.connection)
            if sent < BATCH:
                # Notifications that arrived with the result of a statement are no longer on the socket.
                if not session.notifications:
                    select.select([session.transport], [], [], IDLE_SECONDS)
                time.sleep(max(0.0, began + GATHER_SECONDS - time.monotonic()))


def _tick(connection: Connection) -> None:
    """Write an empty transaction. A replica's lag is measured by the time of the last transaction."""
    connection.execute(select_rows(func.pg_current_xact_id()))


@contextmanager
def broker() -> Iterator[tuple[KafkaAdminClient, KafkaProducer]]:
    """Open clients of the broker that give up after seconds; by default they wait for up to two minutes."""
    producer = kafka.connected(
        KafkaProducer,
        acks="all",
        enable_idempotence=True,
        metrics_enabled=False,  # unused, and a fifth of the CPU of a single event
        linger_ms=0,
        batch_size=64 * 1024,
        max_block_ms=int(SEND_SECONDS * 1000),
        delivery_timeout_ms=int(SEND_SECONDS * 1000),
    )
    with kafka.connected(KafkaAdminClient) as admin, producer as connected:
        yield admin, connected


class Leader:
    """The relay that sends. It tracks the id of the topic and the end offset of each partition."""

    def __init__(self, connection: Connection, admin: KafkaAdminClient, producer: KafkaProducer) -> None:
        self._connection, self._admin, self._producer = connection, admin, producer
        known = connection.execute(
            select_rows(*relayed_topic.c["topic_id", "ends"]).where(relayed_topic.c.name == kafka.EVENTS)
        ).first()
        self._topic_id: str = known.topic_id if known else ""
        self._ends: list[int] = list(known.ends) if known else []
        self._look_at = 0.0

    def send_batch(self) -> int:
        """Send the oldest unsent events, mark them and return their number.

        If the broker has lost events, send those of the last day again.
        """
        if time.monotonic() >= self._look_at:
            self._look_at_topic()
            self._look_at = time.monotonic() + IDLE_SECONDS
        rows = self._connection.execute(_OLDEST_UNSENT).all()
        if rows:
            is_complete = self._send(rows)
            self._mark(rows)
            SENT.inc(len(rows))
            if not is_complete:
                _send_again()
        return len(rows)

    def _look_at_topic(self) -> None:
        if (topic_id := kafka.ensure_topic(self._admin)) != self._topic_id:
            if self._topic_id:
                _send_again()
            self._topic_id, self._ends = topic_id, []
            self._connection.execute(_REMEMBER, self._state())

    def _send(self, rows: Sequence[Any]) -> bool:
        """Send events and wait until the broker has stored all of them. Return whether it still has the earlier ones.

        Wait for each result, because the producer's flush does not raise on failure.
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
        times = [row.occurred_at for row in rows]
        marked = {"first": min(times), "last": max(times), "ids": [row.id for row in rows]}
        self._connection.execute(_MARK, self._state() | marked)

    def _state(self) -> dict[str, Any]:
        return {"topic": self._topic_id, "new_ends": self._ends}


def _send_again() -> None:
    log.warning("the broker has lost events; sending those of the last day again")
    outbox.send_again(datetime.now(UTC) - LOST)


def attributes(row: Any) -> dict[str, str]:
    """Return the CloudEvents attributes of an event in the outbox."""
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
