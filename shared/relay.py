"""The outbox relay: sends committed events to Kafka, in order, and marks each when the broker has it.

    python -m shared.relay

Woken by NOTIFY; several may run, and the rows that one is sending are locked for the others. A relay that dies
between the broker's answer and its own commit sends those events again: consumers know them by their id.
"""

import contextlib
import json
import logging
import logging.config
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pg8000
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from sqlalchemy import Row, func, update
from sqlalchemy import select as select_rows
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url

from shared import database, kafka, logs
from shared.events import SOURCE
from shared.problems import ServiceUnavailable
from shared.settings import InvalidSettings, load, settings
from shared.tables import outbox, relayed_topic

BATCH = 500
IDLE_SECONDS = 1.0
"""How long to wait for a NOTIFY before looking anyway: one may be lost with a connection."""
SEND_SECONDS = 10.0
PAUSE_SECONDS = 1.0
RESENT = timedelta(days=1)
RESENT_AT_ONCE = 5000

log = logging.getLogger("relay")


def run(stopped: threading.Event) -> None:
    """Relays until stopped, through every failure of the database and the broker."""
    while not stopped.is_set():
        try:
            _relay(stopped)
        except (ServiceUnavailable, KafkaError, OSError, pg8000.Error) as error:
            log.warning("waiting for the database or the broker", extra={"error": type(error).__name__})
            stopped.wait(PAUSE_SECONDS)


def _relay(stopped: threading.Event) -> None:
    with contextlib.ExitStack() as clients:
        # A connection of its own, not through PgBouncer, which cannot pass on a LISTEN.
        listener, transport = database.connect(make_url(settings().database_url), timeout=SEND_SECONDS)
        clients.callback(listener.close)
        listener.autocommit = True
        listener.cursor().execute("LISTEN outbox")
        admin = KafkaAdminClient(bootstrap_servers=settings().kafka_bootstrap_servers)
        clients.callback(admin.close)
        producer = KafkaProducer(
            bootstrap_servers=settings().kafka_bootstrap_servers,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_block_ms=int(SEND_SECONDS * 1000),
            delivery_timeout_ms=int(SEND_SECONDS * 1000),
            request_timeout_ms=int(SEND_SECONDS * 500),
        )
        clients.callback(producer.close, timeout=1)
        log.info("relaying")
        known = ""
        while not stopped.is_set():
            topic_id = kafka.ensure_topics(admin)
            if topic_id != known:
                resend_what_was_forgotten(topic_id)
                known = topic_id
            while send_batch(producer) == BATCH:
                pass
            if select.select([transport], [], [], IDLE_SECONDS)[0]:
                # Reads what was notified; raises when the server has closed the connection.
                listener.cursor().execute("SELECT 1")


def resend_what_was_forgotten(topic_id: str) -> None:
    """Marks the events of the last day as not sent, when the topic is not the one that they were sent to.

    In steps, each short enough for the database's time limit; the new topic is noted last, so that a relay that
    dies between leaves the rest to the next.
    """
    with database.transaction() as connection:
        known = connection.scalar(select_rows(relayed_topic.c.topic_id).where(relayed_topic.c.name == kafka.EVENTS))
    if known == topic_id:
        return
    if known:
        log.warning("the broker has forgotten its events; sending those of the last day again")
        while _mark_unsent(limit=RESENT_AT_ONCE) == RESENT_AT_ONCE:
            pass
    with database.transaction() as connection:
        connection.execute(
            insert(relayed_topic)
            .values(name=kafka.EVENTS, topic_id=topic_id)
            .on_conflict_do_update(index_elements=["name"], set_={"topic_id": topic_id})
        )


def _mark_unsent(limit: int) -> int:
    sent = (
        select_rows(outbox.c.position)
        .where(outbox.c.occurred_at > func.now() - RESENT, outbox.c.sent_at.is_not(None))
        .order_by(outbox.c.position)
        .limit(limit)
    )
    with database.transaction() as connection:
        return connection.execute(update(outbox).where(outbox.c.position.in_(sent)).values(sent_at=None)).rowcount


def send_batch(producer: KafkaProducer) -> int:
    """Sends the oldest events that are not sent, and marks them. Returns how many there were."""
    unsent = (
        select_rows(outbox).where(outbox.c.sent_at.is_(None)).order_by(outbox.c.position).limit(BATCH).with_for_update()
    )
    with database.transaction() as connection:
        rows = connection.execute(unsent).all()
        if rows:
            _send(producer, rows)
            positions = [row.position for row in rows]
            connection.execute(update(outbox).where(outbox.c.position.in_(positions)).values(sent_at=func.now()))
    return len(rows)


def _send(producer: KafkaProducer, rows: Sequence[Row[Any]]) -> None:
    """Sends events and waits until the broker has all of them."""
    futures = [
        producer.send(
            kafka.EVENTS,
            key=str(row.subject).encode(),
            value=json.dumps(row.data, ensure_ascii=False, separators=(",", ":")).encode(),
            headers=kafka.to_headers(attributes(row)),
        )
        for row in rows
    ]
    deadline = time.monotonic() + SEND_SECONDS
    for future in futures:
        future.get(timeout=max(0.0, deadline - time.monotonic()))


def attributes(row: Row[Any]) -> dict[str, str]:
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
        logging.config.dictConfig(logs.configuration(load(os.environ, ["database", "kafka"]).log_level))
    except InvalidSettings as error:
        sys.exit("\n".join(["the relay cannot start with these settings:", *error.problems]))
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    run(stopped)


if __name__ == "__main__":
    main()
