"""How a process speaks to PostgreSQL."""

import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pg8000.dbapi
import pytest
from sqlalchemy.engine import make_url

from knative.local.servers import LOOPBACK
from shared import database

START_UP = 3 << 16
"""Protocol 3.0 (PostgreSQL, 53.7), where a request for TLS would have 80877103."""


def test_a_server_that_offers_tls_is_not_asked_for_it() -> None:
    """With the one of tests that cannot be seen: it was built without TLS, and most are not."""
    with socket.create_server((LOOPBACK, 0)) as server, ThreadPoolExecutor(1) as pool:
        url = make_url(f"postgresql://aegis:password@{LOOPBACK}:{server.getsockname()[1]}/aegis")
        connecting = pool.submit(database.connect, url, 1.0)
        client, _ = server.accept()
        with client:
            _, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
        with pytest.raises((OSError, pg8000.dbapi.Error)):
            connecting.result()
    assert code == START_UP


def test_a_statement_with_parameters_takes_one_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Counted(database._Transport):
        def send(self, data: Any, *flags: Any) -> int:
            sent.append(data)
            return super().send(data, *flags)

    monkeypatch.setattr(database, "_Transport", Counted)
    connection, _ = database.connect(make_url(os.environ["DATABASE_URL"]), 1.0)
    connection.execute_simple("BEGIN")
    sent.clear()
    cursor = connection.cursor()
    cursor.execute("SELECT %s::text, %s::text, %s::int + 1", ("김민준", None, 1))
    assert (list(cursor.fetchall()), len(sent)) == ([["김민준", None, 2]], 1)
    connection.close()


def test_after_what_postgresql_refuses_and_what_cannot_be_sent_a_connection_is_still_good() -> None:
    connection, _ = database.connect(make_url(os.environ["DATABASE_URL"]), 1.0)
    cursor = connection.cursor()
    with pytest.raises(pg8000.dbapi.DatabaseError):
        cursor.execute("SELECT 1 / %s::int", (0,))
    connection.rollback()
    with pytest.raises(UnicodeEncodeError):
        cursor.execute("SELECT %s::text", ("\ud800",))
    cursor.execute("SELECT %s::int", (7,))
    assert list(cursor.fetchall()) == [[7]]
    connection.close()
