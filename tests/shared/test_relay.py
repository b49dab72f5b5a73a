"""The outbox relay: every committed event reaches the broker, in order per user."""

import json
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from knative.local.supervisor import Process, Supervisor
from shared.events import kafka, relay
from shared.events.outbox import announce
from shared.events.types import EmailVerified
from shared.postgresql.tables import outbox, relayed_topic
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.runtime.probes import Heart
from tests.conftest import until_stopped, wait_for
from tests.servers import kill, read_topic, start_again


@contextmanager
def running(relays: int = 1) -> Iterator[None]:
    with ExitStack() as threads:
        for _ in range(relays):
            threads.enter_context(until_stopped(lambda stopped: relay.run(stopped, Heart())))
        yield


def announce_many(count: int, users: list[uuid.UUID]) -> None:
    """Events whose data count up, for each user in turn."""
    statement = """
        INSERT INTO outbox (id, type, subject, data, request_id)
        SELECT gen_random_uuid(), :type, subject, json_build_object('number', number), 'r1'
        FROM generate_series(0, :count - 1) AS number, unnest(CAST(:users AS uuid[])) AS subject
        ORDER BY number
    """
    with transaction() as connection:
        connection.execute(text(statement), {"type": EmailVerified.type, "count": count, "users": users})


def unsent() -> int:
    with transaction() as connection:
        return connection.scalar(select(func.count()).where(outbox.c.sent_at.is_(None))) or 0


def received(count: int) -> list[Any]:
    """The events in the topic, once there are so many; and those that come right after."""
    return read_topic(lambda records: len(records) >= count)


def test_an_event_is_a_binary_cloud_event_keyed_by_its_user(own_database: Process, own_kafka: Process) -> None:
    user = uuid.uuid4()
    logs.request_id.set("from-the-caller")
    with transaction() as connection:
        announce(connection, EmailVerified(user_id=user))
        row = connection.execute(select(outbox)).one()
    with running():
        wait_for(lambda: unsent() == 0)
    (record,) = received(1)
    headers = {name: value.decode() for name, value in record.headers}
    assert headers.pop("ce_time") == row.occurred_at.isoformat()
    assert headers == {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": str(row.id),
        "ce_source": "/aegis/user-service",
        "ce_type": "com.aegis.user.email_verified.v1",
        "ce_subject": str(user),
        "ce_partitionkey": str(user),
        "ce_requestid": "from-the-caller",
    }
    assert record.key == str(user).encode()
    assert json.loads(record.value) == {"user_id": str(user)}


@pytest.mark.parametrize("relays", [1, 3])
def test_each_users_events_arrive_once_and_in_order(own_database: Process, own_kafka: Process, relays: int) -> None:
    users = [uuid.uuid4() for _ in range(10)]
    announce_many(120, users)
    with running(relays):
        wait_for(lambda: unsent() == 0)
    numbers: dict[bytes, list[int]] = {}
    for record in received(1200):
        numbers.setdefault(record.key, []).append(json.loads(record.value)["number"])
    assert numbers == {str(user).encode(): list(range(120)) for user in users}


def test_another_relay_takes_over_from_one_that_is_killed(own_database: Process, own_kafka: Process) -> None:
    with process() as leader:
        announce_many(1, [uuid.uuid4()])
        wait_for(lambda: unsent() == 0)
        with process():
            users = [uuid.uuid4() for _ in range(10)]
            announce_many(200, users)
            wait_for(lambda: unsent() < 2000)
            leader.kill()
            wait_for(lambda: unsent() == 0)
    numbers: dict[bytes, list[int]] = {}
    for record in received(2001):
        numbers.setdefault(record.key, []).append(json.loads(record.value)["number"])
    for user in users:
        # What the first had sent and not marked came twice; the first time in order, whatever comes after.
        assert list(dict.fromkeys(numbers[str(user).encode()])) == list(range(200))


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A relay of its own, which can be killed."""
    started = subprocess.Popen([sys.executable, "-m", "shared.events.relay"])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("broker", ["refuses", "says nothing"])
def test_without_a_broker_events_wait_and_the_relay_ends_when_told(
    own_database: Process, monkeypatch: pytest.MonkeyPatch, broker: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if broker == "says nothing":
            silent.listen()
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{silent.getsockname()[1]}")
        announce_many(1, [uuid.uuid4()])
        with process() as alone:
            wait_for(leads)
            assert unsent() == 1
            alone.terminate()
            assert alone.wait(30) == 0
    assert unsent() == 1


def leads() -> bool:
    with transaction() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")))


def test_a_broker_that_has_lost_the_end_of_its_topic_is_sent_it_again(
    own_database: Process, own_kafka: Process
) -> None:
    user = uuid.uuid4()
    announce_many(3, [user])
    with running():
        wait_for(lambda: unsent() == 0)
    with transaction() as connection:
        # As if it had taken two more events before it lost them.
        connection.execute(update(relayed_topic).values(ends=[5] * kafka.PARTITIONS))
    announce_many(1, [user])
    with running():
        wait_for(lambda: unsent() == 0 and len(received(4)) > 4)
    assert len({dict(record.headers)["ce_id"] for record in received(8)}) == 4


def test_events_wait_in_the_outbox_for_a_broker_that_is_away(
    own_database: Process, own_kafka: Process, supervisor: Supervisor
) -> None:
    with running():
        announce_many(1, [uuid.uuid4()])
        wait_for(lambda: unsent() == 0)
        kill(own_kafka)
        announce_many(3, [uuid.uuid4()])
        assert unsent() == 3
        start_again(supervisor, own_kafka)
        wait_for(lambda: unsent() == 0, seconds=60)
        # The embedded broker has forgotten the first event: it is sent again.
        assert len({dict(record.headers)["ce_id"] for record in received(4)}) == 4


def test_the_relay_outlives_a_restart_of_postgresql(
    own_database: Process, own_kafka: Process, supervisor: Supervisor
) -> None:
    with running():
        announce_many(1, [uuid.uuid4()])
        wait_for(lambda: unsent() == 0)
        kill(own_database)
        start_again(supervisor, own_database)
        wait_for(announced_again)
        wait_for(lambda: unsent() == 0, seconds=30)
    assert len(received(2)) == 2


def announced_again() -> bool:
    from shared.runtime.problems import ServiceUnavailable

    try:
        announce_many(1, [uuid.uuid4()])
    except ServiceUnavailable:
        return False
    return True
