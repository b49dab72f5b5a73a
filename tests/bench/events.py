"""What an event takes from its commit: the relay's rate beside a bare producer's, CPU, and the time to its handler."""

import json
import os
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.producer.future import FutureRecordMetadata
from sqlalchemy import func, select, text

from shared.events import kafka, relay
from shared.events.outbox import announce
from shared.events.types import LoggedIn, PhoneCodeRequested
from shared.identity.passwords import hash_password
from shared.postgresql.tables import outbox
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings
from tests.bench import people
from tests.bench.figures import Figure, beside

RUNS = 3
EVENTS = 10_000
USERS = 500
BLOCK = 2000
"""How many events the bare producer sends before it waits for the answers, to stay within its delivery timeout."""
RATE, SECONDS = 50, 20
COST_RATE, COST_SECONDS = 20, 20
"""As many events a second as a machine with two cores can hash passwords."""
IDLE_SECONDS = 20
HASHES = 20


def measure() -> list[Figure]:
    # In the other order, the dispatcher would have to deliver all relayed events.
    return [_event_latency(), *_costs(), _relay()]


def _relay() -> Figure:
    """Events a second from a full outbox to the broker's answer, compared with a bare producer."""
    admin = KafkaAdminClient(bootstrap_servers=settings().kafka_bootstrap_servers)
    kafka.ensure_topic(admin)
    admin.close()
    pairs = [(_relayed(), _bare_producer()) for _ in range(RUNS)]
    return beside("relay", "events/s", ">= 0.6", pairs)


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
            if self.path == "/send-sms":
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
        announce(connection, PhoneCodeRequested(user_id=user))
    committed[str(user)] = time.monotonic()


def _costs() -> list[Figure]:
    """CPU of the event of a log-in in each process, which no function takes; and of the processes when none comes.

    The baseline is CPU of the hash of a password, which is most of a log-in.
    """
    users = [user.id for user in people.users(COST_RATE)]
    with ExitStack() as processes:
        parts = {
            "relay": processes.enter_context(_process("shared.events.relay")),
            "dispatcher": processes.enter_context(
                _process("shared.events.dispatcher", FUNCTION_URL="http://{service}")
            ),
            "broker": _embedded("tansu"),
            "postgresql": _embedded("postgres"),
        }
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
        _announce_steadily(users, 1)  # connections and caches
        for _ in range(RUNS):
            hashing = _hash_seconds()
            before = _cpu(parts)
            _announce_steadily(users, COST_SECONDS)
            for name, seconds in _cpu(parts).items():
                pairs[name].append(((seconds - before[name]) / COST_RATE / COST_SECONDS * 1000, hashing * 1000))
        time.sleep(IDLE_SECONDS)  # for what a busy minute leaves to do
        before = _cpu(parts)
        time.sleep(IDLE_SECONDS)
        idle = {name: (seconds - before[name]) / IDLE_SECONDS * 100 for name, seconds in _cpu(parts).items()}
    whole = [(sum(ours for ours, _ in run), run[0][1]) for run in zip(*pairs.values(), strict=True)]
    return [
        beside("event_cpu", "ms of CPU", "<= 0.05", whole),
        *(beside(f"event_cpu_{name}", "ms of CPU", "", pairs[name]) for name in parts),
        *(
            Figure(f"idle_{name}", idle[name], "% of a core", None, None, "<= 0.5" if goal else "", 1, 0)
            for name, goal in (("relay", True), ("dispatcher", True), ("broker", False))
        ),
    ]


def _embedded(name: str) -> psutil.Process:
    return next(child for child in psutil.Process().children() if child.name() == name)


def _cpu(parts: dict[str, psutil.Process]) -> dict[str, float]:
    """Seconds of CPU of each, its children included; but not those of our own connection to PostgreSQL."""
    with transaction() as connection:
        ours = connection.scalar(select(func.pg_backend_pid()))
    return {
        name: sum(process.cpu_times()[:4])
        + sum(sum(child.cpu_times()[:4]) for child in process.children(recursive=True) if child.pid != ours)
        for name, process in parts.items()
    }


def _hash_seconds() -> float:
    began = time.process_time()
    for _ in range(HASHES):
        hash_password(people.PASSWORD)
    return (time.process_time() - began) / HASHES


def _announce_steadily(users: list[uuid.UUID], seconds: int) -> None:
    """Announce a log-in of each user every second; return when the last has been sent."""
    began = time.monotonic()
    for number in range(COST_RATE * seconds):
        time.sleep(max(0.0, began + number / COST_RATE - time.monotonic()))
        user = users[number % COST_RATE]
        with transaction() as connection:
            announce(connection, LoggedIn(user_id=user, session_id=user, amr=["pwd"]))
    _until(lambda: _unsent() == 0)


@contextmanager
def _process(module: str, **variables: str) -> Iterator[psutil.Process]:
    environment = {name: value for name, value in os.environ.items() if name != "PORT"} | {"LOG_LEVEL": "WARNING"}
    process = psutil.Popen([sys.executable, "-m", module], env=environment | variables)
    try:
        yield process
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
