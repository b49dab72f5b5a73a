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
"""Between the starts of two batches while events keep coming; an event that comes alone does not wait."""
IDLE_SECONDS = 1.0
"""Between two looks without a NOTIFY, between two looks at the topic, and between two tries to lead."""
SEND_SECONDS = 5.0
PAUSE_SECONDS = 1.0
UPKEEP_SECONDS = 3600.0
LOST = timedelta(days=1)
"""Of so long events are sent again to a broker that has lost some: more would keep the new ones waiting."""

_LOCK = 7_253_417_910
# A relay whose machine has vanished loses the lead as soon as this tells the server.
_KEEPALIVES = {"tcp_keepalives_idle": 1, "tcp_keepalives_interval": 1, "tcp_keepalives_count": 2}

log = logging.getLogger("relay")

# Made once, as to compose a statement takes longer than to execute it.
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
    """A session of its own, not through PgBouncer, which can pass on neither a LISTEN nor a lock of the session.

    Each statement is a transaction: one round trip in place of three.
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
    """Whether this relay is the one that sends, from now on until its session ends."""
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
                # Notifications that came with the answers to statements are not on the socket any more.
                if not session.notifications:
                    select.select([session.transport], [], [], IDLE_SECONDS)
                time.sleep(max(0.0, began + GATHER_SECONDS - time.monotonic()))


def _tick(connection: Connection) -> None:
    """A transaction that changes nothing: by the time of the last, it shows how far a replica is behind."""
    connection.execute(select_rows(func.pg_current_xact_id()))


@contextmanager
def broker() -> Iterator[tuple[KafkaAdminClient, KafkaProducer]]:
    """Clients of the broker that give up after seconds; by themselves they wait for up to two minutes."""
    producer = kafka.connected(
        KafkaProducer,
        acks="all",
        enable_idempotence=True,
        metrics_enabled=False,  # nobody reads them, and they cost a fifth of an event that comes alone
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
        known = connection.execute(
            select_rows(*relayed_topic.c["topic_id", "ends"]).where(relayed_topic.c.name == kafka.EVENTS)
        ).first()
        self._topic_id: str = known.topic_id if known else ""
        self._ends: list[int] = list(known.ends) if known else []
        self._look_at = 0.0

    def send_batch(self) -> int:
        """Sends the oldest events that are not sent, and marks them. Returns how many there were.

        A broker that has lost events is sent those of the last day again.
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
        times = [row.occurred_at for row in rows]
        marked = {"first": min(times), "last": max(times), "ids": [row.id for row in rows]}
        self._connection.execute(_MARK, self._state() | marked)

    def _state(self) -> dict[str, Any]:
        return {"topic": self._topic_id, "new_ends": self._ends}


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
