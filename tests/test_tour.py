"""The tour that `make tour` takes."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema_rs
from sqlalchemy import select

from shared.postgresql.tables import account, outbox
from shared.postgresql.transactions import transaction
from tests.conftest import DATA, ROOT
from tests.servers import read_topic

OPERATIONS = 43
"""So many the tour calls. A new operation need not be among them, but none may leave it."""


def tour(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.tour"],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(DATA), "URL": os.environ["PUBLIC_URL"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tour_calls_every_operation_and_its_events_are_as_documented() -> None:
    done = tour()
    assert done.returncode == 0, done.stdout + done.stderr
    called = re.search(r"^(\d+) of \d+ operations answered as they should$", done.stdout, re.MULTILINE)
    assert called
    assert int(called[1]) >= OPERATIONS, done.stdout.splitlines()[-1]
    kim = select(account.c.id).where(account.c.email.startswith("new-kim-"))
    with transaction() as connection:
        announced = {str(id_) for id_ in connection.scalars(select(outbox.c.id).where(outbox.c.subject.in_(kim)))}
    assert announced
    with urllib.request.urlopen(f"{os.environ['PUBLIC_URL']}/asyncapi.json", timeout=10) as response:
        document = json.load(response)

    records = {id_of(record): record for record in read_topic(lambda read: announced <= set(map(id_of, read)))}
    for id_ in announced:
        check_against(document, records[id_])


def id_of(record: Any) -> str:
    """The id of the event in a record."""
    return str(dict(record.headers)["ce_id"].decode())


def check_against(document: Any, record: Any) -> None:
    """That a record of the topic is what the AsyncAPI document says of its event."""
    headers = {name: value.decode() for name, value in record.headers}
    key, payload = record.key.decode(), json.loads(record.value)
    assert headers.keys() == document["components"]["schemas"]["CloudEvent"]["properties"].keys()
    assert key == headers["ce_subject"] == payload["user_id"]
    message = document["components"]["messages"][headers["ce_type"]]
    said = {"headers": message["headers"], "payload": message["payload"], "key": message["bindings"]["kafka"]["key"]}
    schema = {"properties": said, "components": document["components"]}
    jsonschema_rs.validate(schema, {"headers": headers, "payload": payload, "key": key}, validate_formats=True)


def test_an_administrator_who_cannot_be_made_is_told_in_the_words_of_the_command(tmp_path: Path) -> None:
    elsewhere = {"DATA_DIR": str(tmp_path), "DATABASE_URL": ""}
    command = [sys.executable, "-m", "knative.aegis", "admin", "create", "admin@example.com"]
    words = subprocess.run(command, cwd=ROOT, env=os.environ | elsewhere, capture_output=True, text=True, check=False)
    done = tour(**elsewhere)
    assert done.returncode == 1
    assert "no administrator could be made with: " in done.stderr
    assert words.stderr.strip().splitlines()[-1] in done.stderr


def test_a_service_that_is_not_there_is_told_in_one_line() -> None:
    done = tour(URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
