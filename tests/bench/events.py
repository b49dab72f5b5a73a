"""Events: the relay's rate compared with a bare producer's, and the time from a commit to the event's handler."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.producer.future import FutureRecordMetadata
from sqlalchemy import func, select, text

from shared.events import kafka, relay
from shared.events.outbox import announce
from shared.events.types import LoggedIn
from shared.postgresql.tables import outbox
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings
from tests.bench.figures import Figure, beside

RUNS = 3
EVENTS = 10_000
USERS = 500
BLOCK = 2000
"""How many events the bare producer sends before it waits for the answers, to stay within its delivery timeout."""
RATE, SECONDS = 50, 20


def measure() -> list[Figure]:
    # In the other order, the dispatcher would have to deliver all relayed events.
    return [_event_latency(), _relay()]


def _relay() -> Figure:
    """Events a second from a full outbox to the broker's answer, compared with a bare producer."""
    admin = KafkaAdminClient(bootstrap_servers=settings().kafka_bootstrap_servers)
    kafka.ensure_topic(admin)
    admin.close()
    pairs = [(_relayed(), _bare_producer()) for _ in range(RUNS)]
    return beside("relay", "events/s", ">= 0.5", pairs)


def _bare_producer() -> float:
    subjects = [str(uuid.uuid4()) for _ in range(USERS)]
    value = json.dumps({"user_id": subjects[0], "session_id": subjects[1], "amr": ["pwd"]}).encode()
    with relay.broker() as (_, producer):
        return _rate(EVENTS, lambda: _send(producer, subjects, value))


def _send(producer: KafkaProducer, subjects: list[str], value: bytes) -> None:
    futures: list[FutureRecordMetadata] = []
    for number in range(EVENTS):
        subject = subjects[number % USERS]
        attributes = {
            "specversion": "1.0",
            "id": subject,
            "source": "/aegis/user-service",
            "type": LoggedIn.type,
            "subject": subject,
            "time": "2026-01-01T00:00:00.000000+00:00",
            "partitionkey": subject,
            "requestid": subject,
        }
        if len(futures) == BLOCK:
            _wait_for(futures)
        futures.append(
            producer.send(kafka.EVENTS, key=subject.encode(), value=value, headers=kafka.to_headers(attributes))
        )
    _wait_for(futures)


def _wait_for(futures: list[FutureRecordMetadata]) -> None:
    for future in futures:
        future.get(timeout=60)
    futures.clear()


def _relayed() -> float:
    """Return the rate of a relay in its own process, from its first batch to its last."""
    fill = """
        INSERT INTO outbox (id, type, subject, data, request_id)
        SELECT gen_random_uuid(), :type, subject,
               json_build_object('user_id', subject, 'session_id', subject, 'amr', ARRAY['pwd']), subject::text
        FROM (SELECT gen_random_uuid() AS subject FROM generate_series(1, :users)) AS users,
             generate_series(1, :each)
    """
    with transaction() as connection:
        connection.execute(text(fill), {"type": LoggedIn.type, "users": USERS, "each": EVENTS // USERS})
    with _process("shared.events.relay"):
        _until(lambda: _unsent() < EVENTS)
        left = _unsent()
        return _rate(left, lambda: _until(lambda: _unsent() == 0))


def _unsent() -> int:
    with transaction() as connection:
        return connection.scalar(select(func.count()).where(outbox.c.sent_at.is_(None))) or 0


def _event_latency() -> Figure:
    """Milliseconds from a commit to the handler of its event, at 50 events a second."""
    arrived: dict[str, float] = {}

    class Function(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            if self.path == "/record-audit":
                arrived.setdefault(self.headers["ce-subject"], time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response_only(204)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Function)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{{service}}"
    committed: dict[str, float] = {}
    with ExitStack() as processes:
        processes.enter_context(_process("shared.events.relay"))
        processes.enter_context(_process("shared.events.dispatcher", FUNCTION_URL=url))
        _announce(committed)
        _until(lambda: committed.keys() <= arrived.keys())
        committed.clear()
        began = time.monotonic()
        for number in range(RATE * SECONDS):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            _announce(committed)
        _until(lambda: committed.keys() <= arrived.keys())
    server.shutdown()
    waits = sorted((arrived[user] - committed[user]) * 1000 for user in committed)
    p95 = waits[len(waits) * 95 // 100]
    spread = (waits[-1] - waits[0]) / statistics.median(waits)
    return Figure("event_latency", p95, "ms (p95)", None, None, "<= 100", len(waits), spread)


def _announce(committed: dict[str, float]) -> None:
    user = uuid.uuid4()
    with transaction() as connection:
        announce(connection, LoggedIn(user_id=user, session_id=user, amr=["pwd"]))
    committed[str(user)] = time.monotonic()


@contextmanager
def _process(module: str, **variables: str) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if name != "PORT"} | {"LOG_LEVEL": "WARNING"}
    process = subprocess.Popen([sys.executable, "-m", module], env=environment | variables)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _rate(count: int, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("The events do not arrive. See the output of relay and dispatcher above.")
        time.sleep(0.01)
