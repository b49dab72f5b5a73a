"""Servers of a test's own, to be killed."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import pytest
import urllib3
from flask import Flask, request
from flask.testing import FlaskClient
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import UnknownTopicOrPartitionError
from redis import Redis, ResponseError

from knative.local import servers
from knative.local.replica import replica as new_replica
from knative.local.supervisor import Process, StartFailed, Supervisor
from knative.local.up import answers
from shared.events import kafka
from shared.framework.registry import HTTP_FUNCTIONS
from shared.http.request import METHODS
from shared.postgresql import driver, pool, replica
from shared.redis import cache
from shared.redis.cluster import ClusteredRedis
from shared.runtime import settings
from tests.conftest import DATA, ROOT, BufferedClient, once_for_all_workers, wait_for

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))
RIGHTS_OF_TESTS = """
    GRANT EXECUTE ON FUNCTION pg_wal_replay_pause, pg_wal_replay_resume, pg_promote, pg_reload_conf TO aegis;
    GRANT ALTER SYSTEM ON PARAMETER max_standby_streaming_delay TO aegis;\n
"""
TAKEOVER_MILLISECONDS = 1500
"""A master that is silent for so long is taken for dead; no shorter, as the machine may be busy."""


def redis_client() -> Redis:
    """The Redis of the settings, or the cluster, by redis-py."""
    client = cache.client()
    if isinstance(client, ClusteredRedis):
        return cast(Redis, client.cluster)  # no subclass, but with the same commands
    return Redis.from_url(settings.settings().redis_url)


def forget_settings() -> None:
    for remembered in (settings.settings, pool.engine, replica.engine, cache.client):
        remembered.cache_clear()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path, print, threading.Event())
    yield supervisor
    supervisor.stop()


Own = Callable[[str, Process, str], Process]


@pytest.fixture
def own(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    """Starts a server and lets this process use it under the name of its setting."""

    def start(name: str, process: Process, address: str) -> Process:
        supervisor.start(process)
        supervisor.wait_until_ready(process, seconds=30)
        monkeypatch.setenv(name, address)
        if name == "DATABASE_URL":
            monkeypatch.setenv("OWNER_DATABASE_URL", "")
        forget_settings()
        return process

    yield start
    monkeypatch.undo()
    forget_settings()


@pytest.fixture
def own_database(own: Own, tmp_path: Path) -> Process:
    """A PostgreSQL of this test's own, with the tables, whose login may also stop and promote a replica."""
    made = DATA / "postgresql_of_tests"
    once_for_all_workers(made, lambda: make_database(made))
    subprocess.run(["cp", "-a", made / "postgresql", tmp_path], check=True)
    return own("DATABASE_URL", *servers.postgresql(tmp_path, "password"))


def make_database(folder: Path) -> None:
    """Makes what `own_database` copies, as initdb and the migrations take seconds."""
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir()
    process, url = servers.postgresql(unfinished, "password")
    servers.run_alone(unfinished / "postgresql", RIGHTS_OF_TESTS)
    supervisor = Supervisor(unfinished, print, threading.Event())
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=30)
    subprocess.run(
        [sys.executable, "-m", "shared.postgresql.migrate"],
        env={**os.environ, "DATABASE_URL": url, "OWNER_DATABASE_URL": ""},
        check=True,
    )
    supervisor.stop()
    unfinished.rename(folder)


@pytest.fixture
def own_replica(own_database: Process, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    """A PostgreSQL that follows `own_database`, and is read from however far it is behind."""
    monkeypatch.setenv("REPLICA_MAX_LAG_SECONDS", "3600")
    monkeypatch.setattr(replica.server, "timeout", driver.TIMEOUT_SECONDS)  # the machine may be busy
    return own("REPLICA_DATABASE_URL", *new_replica(tmp_path, settings.settings().database_url))


@pytest.fixture
def own_redis(own: Own, tmp_path: Path) -> Process:
    return own("REDIS_URL", *servers.redis(tmp_path))


@pytest.fixture(params=["own_redis", "own_redis_cluster"])
def any_redis(request: pytest.FixtureRequest) -> list[Process]:
    """A Redis of this test's own, and then a cluster: all of its processes."""
    redis = request.getfixturevalue(request.param)
    return [redis] if isinstance(redis, Process) else list(redis.values())


@pytest.fixture
def own_redis_cluster(
    redis_cluster: "tuple[Supervisor, dict[int, Process], str]", monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[int, Process]]:
    """An empty Redis cluster, to be killed: the process of each node by its port."""
    supervisor, nodes, url = redis_cluster
    dead = [process for process in nodes.values() if process.popen and process.popen.poll() is not None]
    start_again(supervisor, *dead)
    password = urlsplit(url).password
    clients = [Redis(port=port, password=password) for port in nodes]
    wait_for(lambda: all(is_in_place(client) for client in clients))
    monkeypatch.setenv("REDIS_URL", url)
    forget_settings()
    redis_client().flushall()
    yield nodes
    monkeypatch.undo()
    forget_settings()


@pytest.fixture(scope="session")
def redis_cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> "Iterator[tuple[Supervisor, dict[int, Process], str]]":
    """Three masters with a replica each, for all tests, as it takes them two seconds to agree."""
    supervisor = Supervisor(tmp_path_factory.mktemp("redis_cluster"), print, threading.Event())
    password = secrets.token_hex(16)
    started = [redis_node(tmp_path_factory.mktemp("redis"), password) for _ in range(6)]
    nodes = {port: process for process, port, _ in started}
    for process in nodes.values():
        supervisor.start(process)
    supervisor.wait_until_ready(*nodes.values(), seconds=30)

    clients = [Redis(port=port, password=password) for port in nodes]
    for number, (client, (_, port, bus_port)) in enumerate(zip(clients, started, strict=True)):
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        clients[0].execute_command("CLUSTER", "MEET", servers.LOOPBACK, port, bus_port)
    for master, follower, slots in zip(clients[:3], clients[3:], SLOTS, strict=True):
        master.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
        wait_for(partial(is_done_by, follower, "CLUSTER", "REPLICATE", master.execute_command("CLUSTER MYID")))
    yield supervisor, nodes, f"redis+cluster://:{password}@{servers.LOOPBACK}:{next(iter(nodes))}/0"
    supervisor.stop()


def redis_node(folder: Path, password: str) -> tuple[Process, int, int]:
    """A node for a Redis cluster, its port, and that for other nodes."""
    process, url = servers.redis(folder)
    port, bus_port = urlsplit(url).port or 0, servers.free_port()
    process.name = f"redis-{port}"
    with (folder / "redis.conf").open("a") as configuration:
        configuration.write(
            f"requirepass {password}\nprimaryauth {password}\nrepl-diskless-sync-delay 0\n"
            f"cluster-enabled yes\ncluster-port {bus_port}\ncluster-node-timeout {TAKEOVER_MILLISECONDS}\n"
        )
    return process, port, bus_port


def is_done_by(node: Redis, *command: Any) -> bool:
    """Whether a node of a cluster does this now; not before it has met the nodes that the command names."""
    try:
        return bool(node.execute_command(*command))
    except ResponseError:
        return False


def is_in_place(client: Redis) -> bool:
    """Whether the node's cluster works, and its replica follows it, or it follows its master."""
    is_ok = client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
    replication = client.info("replication")
    return is_ok and (replication.get("master_link_status") == "up" or replication["connected_slaves"] == 1)


@pytest.fixture
def own_kafka(request: pytest.FixtureRequest, own: Own, monkeypatch: pytest.MonkeyPatch) -> Process:
    """A broker without topics, to be killed: the embedded one, or Apache Kafka (`make test-kafka`)."""
    if "KAFKA" not in os.environ:
        return own("KAFKA_BOOTSTRAP_SERVERS", *servers.kafka())
    supervisor, process, address = request.getfixturevalue("apache_kafka")
    if process.popen.poll() is not None:
        start_again(supervisor, process)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", address)
    forget_settings()
    with kafka.connected(KafkaAdminClient) as admin:
        with contextlib.suppress(UnknownTopicOrPartitionError):
            admin.delete_topics([kafka.EVENTS])
        wait_for(lambda: kafka.EVENTS not in admin.list_topics())
    return cast(Process, process)


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervisor, Process, str]]:
    """Apache Kafka for all tests, as it takes seconds to start. KAFKA is a command that sets it up: KAFKA up PORT."""
    # Two ports in a row, below those that the kernel gives to connections.
    data, port = tmp_path_factory.mktemp("kafka") / "data", 20000 + 2 * secrets.randbelow(5000)
    environment = os.environ | {"KAFKA_DATA": str(data)}
    subprocess.run([os.environ["KAFKA"], "up", str(port)], env=environment, check=True, capture_output=True)
    # From now on we run it, so that it can be killed and started again like the others.
    started = psutil.Process(int((data / "pid").read_text()))
    process = Process(
        "kafka", started.cmdline(), environment, is_server=True, is_ready=lambda: servers.is_listening(port)
    )
    started.kill()
    wait_for(lambda: not servers.is_listening(port))
    supervisor = Supervisor(data.parent, print, threading.Event())
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=60)
    yield supervisor, process, f"{servers.LOOPBACK}:{port}"
    supervisor.stop()


Serve = Callable[[Callable[[Any], Any]], FlaskClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an operation that only this test has, at every path."""
    names: set[str] = set()

    def serve(function: Callable[[Any], Any]) -> FlaskClient:
        names.add(function.__name__)
        app = Flask(function.__name__)
        app.test_client_class = BufferedClient

        @app.route("/", defaults={"path": ""}, methods=sorted(METHODS))
        @app.route("/<path:path>", methods=sorted(METHODS))
        def answer(path: str) -> Any:
            return function(request)

        return app.test_client()

    yield serve
    for name in names:
        del HTTP_FUNCTIONS[name]


def function_process(function: str, **variables: str) -> tuple[Process, str]:
    """A process that serves a function as a pod does, and its URL."""
    port = servers.free_port()
    url = f"http://{servers.LOOPBACK}:{port}/"
    own = {"PYTHONPATH": str(ROOT), "FUNCTION_TARGET": function, "HOST": servers.LOOPBACK, "PORT": str(port)}
    process = Process(
        function,
        [sys.executable, "-m", "shared.framework.server"],
        {**os.environ, **own, **variables},
        is_ready=lambda: answers(f"{url}health/live"),
    )
    return process, url


def post_event(url: str, data: Any, headers: dict[str, str]) -> int:
    """The status of the answer, over a connection of its own: the server may be another one than before."""
    sent = {**headers, "Connection": "close"}
    return urllib3.request("POST", url, json=data, headers=sent, retries=False, timeout=30).status


def kill(*processes: Process) -> None:
    """kill -9, and wait until they are gone."""
    for process in processes:
        if process.popen is None:
            raise ValueError("the process was never started")
        # Each of PostgreSQL's is in a group of its own, and one that has a statement at hand would still answer it.
        children = psutil.Process(process.popen.pid).children(recursive=True)
        os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children)


def start_again(supervisor: Supervisor, *processes: Process) -> None:
    """Starts them again as the supervisor does: until they stay, as PostgreSQL waits for its last old processes."""
    for process in processes:
        wait_for(partial(is_started, supervisor, process))


def is_started(supervisor: Supervisor, process: Process) -> bool:
    supervisor._spawn(process, "ab")
    try:
        supervisor.wait_until_ready(process, seconds=30)
    except StartFailed:
        return False
    return True


def read_topic(is_enough: Callable[[list[Any]], bool]) -> list[Any]:
    """The records in the topic of events, once these are enough; and those that come right after."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.settings().kafka_bootstrap_servers, auto_offset_reset="earliest"
    )
    consumer.assign([TopicPartition(kafka.EVENTS, number) for number in range(kafka.PARTITIONS)])
    records: list[Any] = []

    def read(timeout_ms: int = 200) -> bool:
        for batch in consumer.poll(timeout_ms=timeout_ms).values():
            records.extend(batch)
        return is_enough(records)

    wait_for(read, seconds=60)
    read(timeout_ms=1000)
    consumer.close()
    return records
