"""How a process speaks to PostgreSQL."""

import socket
import struct
from concurrent.futures import ThreadPoolExecutor

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
