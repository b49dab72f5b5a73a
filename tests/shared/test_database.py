"""How a process speaks to PostgreSQL."""

import contextlib
import os
import socket
import struct
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pg8000.dbapi
import pytest
from sqlalchemy import text

from knative.local.servers import LOOPBACK
from knative.local.supervisor import Process
from shared.postgresql import driver, pool, transactions
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import settings
from tests.conftest import owner, wait_for
from tests.servers import kill

START_UP = 3 << 16
"""Protocol 3.0 (PostgreSQL, 53.7), where a request for TLS would have 80877103."""


def test_a_server_that_offers_tls_is_not_asked_for_it() -> None:
    """With the one of tests that cannot be seen: it was built without TLS, and most are not."""
    with socket.create_server((LOOPBACK, 0)) as server, ThreadPoolExecutor(1) as pool:
        url = f"postgresql://aegis:password@{LOOPBACK}:{server.getsockname()[1]}/aegis"
        connecting = pool.submit(driver.connect, url, 1.0)
        client, _ = server.accept()
        with client:
            _, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
        with pytest.raises((OSError, pg8000.dbapi.Error)):
            connecting.result()
    assert code == START_UP


def test_a_statement_with_parameters_takes_one_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Counted(driver._Transport):
        def send(self, data: Any, *flags: Any) -> int:
            sent.append(data)
            return super().send(data, *flags)

    monkeypatch.setattr(driver, "_Transport", Counted)
    connection, _ = driver.connect(os.environ["DATABASE_URL"], 1.0)
    connection.execute_simple("BEGIN")
    sent.clear()
    cursor = connection.cursor()
    cursor.execute("SELECT %s::text, %s::text, %s::int + 1", ("김민준", None, 1))
    assert (list(cursor.fetchall()), len(sent)) == ([["김민준", None, 2]], 1)
    connection.close()


def test_after_what_postgresql_refuses_and_what_cannot_be_sent_a_connection_is_still_good() -> None:
    connection, _ = driver.connect(os.environ["DATABASE_URL"], 1.0)
    cursor = connection.cursor()
    with pytest.raises(pg8000.dbapi.DatabaseError):
        cursor.execute("SELECT 1 / %s::int", (0,))
    connection.rollback()
    with pytest.raises(UnicodeEncodeError):
        cursor.execute("SELECT %s::text", ("\ud800",))
    cursor.execute("SELECT %s::int", (7,))
    assert list(cursor.fetchall()) == [[7]]
    connection.close()


@pytest.fixture
def connection() -> Iterator[pg8000.dbapi.Connection]:
    connection, _ = driver.connect(os.environ["DATABASE_URL"], 1.0)
    connection.execute_simple("BEGIN")
    yield connection
    connection.close()


def prepared(connection: pg8000.dbapi.Connection) -> list[list[Any]]:
    """How often each prepared statement of a connection was executed."""
    rows = connection.execute_simple("SELECT generic_plans + custom_plans FROM pg_prepared_statements").rows
    return list(rows)


def execute(connection: pg8000.dbapi.Connection, statement: str, *values: Any) -> list[Any]:
    cursor = connection.cursor()
    cursor.is_prepared = True
    cursor.execute(statement, values)
    return list(cursor.fetchall())


def test_a_statement_is_prepared_once_for_a_connection(connection: pg8000.dbapi.Connection) -> None:
    for number, name in enumerate(["김민준", None, "Kim"]):
        assert execute(connection, "SELECT %s::text, %s::int", name, number) == [[name, number]]
    assert prepared(connection) == [[3]]


def test_one_whose_first_execution_fails_is_prepared_by_the_next(connection: pg8000.dbapi.Connection) -> None:
    for _ in range(2):
        with pytest.raises(pg8000.dbapi.DatabaseError):
            execute(connection, "SELECT 1 / %s::int", 0)
        connection.rollback()
        connection.execute_simple("BEGIN")
    assert execute(connection, "SELECT 1 / %s::int", 1) == execute(connection, "SELECT 1 / %s::int", 1) == [[1]]
    assert len(prepared(connection)) == 1


def ask(statement: str) -> Any:
    with transactions.transaction() as connection:
        return connection.scalar(pool.prepared(text(statement)), {"number": 1})


def test_a_statement_with_other_columns_since_a_migration_is_refused_once() -> None:
    table = f"migrated_{uuid.uuid4().hex}"
    statement = f"SELECT value FROM {table} WHERE value::int = :number"  # noqa: S608
    with owner().begin() as connection:
        connection.execute(text(f"CREATE TABLE {table} AS SELECT 1 AS value"))
        connection.execute(text(f"GRANT SELECT ON {table} TO PUBLIC"))
    try:
        assert ask(statement) == ask(statement) == 1
        with owner().begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} ALTER value TYPE text"))
        with pytest.raises(ServiceUnavailable):
            ask(statement)
        assert ask(statement) == ask(statement) == "1"
    finally:
        with owner().begin() as connection:
            connection.execute(text(f"DROP TABLE {table}"))


def test_where_a_pooler_forgets_what_was_prepared_a_connection_goes_on_without() -> None:
    statement = "SELECT CAST(:number AS int)"
    assert ask(statement) == ask(statement) == 1
    with transactions.transaction() as connection:
        connection.execute(text("DEALLOCATE ALL"))
    with pytest.raises(ServiceUnavailable):
        ask(statement)
    assert [ask(statement) for _ in range(3)] == [1] * 3


def url_of_both(wanted: str, *, replica_first: bool) -> str:
    """Of primary and replica, in this order or the other."""
    primary, replica = settings().database_url, settings().replica_database_url
    login, _, rest = (replica if replica_first else primary).rpartition("@")
    address, _, database_ = rest.partition("/")
    other = urlsplit(primary if replica_first else replica).netloc.rpartition("@")[2]
    return f"{login}@{address},{other}/{database_}?target_session_attrs={wanted}"


def role(url: str) -> tuple[bool] | None:
    """Whether the server that a URL leads to is a standby; None when it leads to none in time."""
    try:
        connection, _ = driver.connect(url, 1.0)
    except (OSError, pg8000.dbapi.Error):
        return None
    with contextlib.closing(connection):
        cursor = connection.cursor()
        cursor.execute("SELECT pg_is_in_recovery()")
        return (bool(cursor.fetchone()[0]),)


def test_of_several_servers_the_one_that_is_wanted_is_found(own_database: Process, own_replica: Process) -> None:
    for replica_first in (False, True):
        writable, standby = [url_of_both(one, replica_first=replica_first) for one in ("read-write", "standby")]
        assert wait_for(partial(role, writable)) == (False,)
        assert wait_for(partial(role, standby)) == (True,)
    kill(own_database)
    assert role(writable) is None
    assert wait_for(partial(role, standby)) == (True,)
