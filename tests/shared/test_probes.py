"""What a relay shows to Kubernetes and Prometheus."""

import os
import subprocess
import urllib.error
import urllib.request
import uuid
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, insert, text

from knative.local import servers
from knative.local.servers import LOOPBACK
from knative.local.supervisor import Process
from shared.events.outbox_metrics import OutboxCollector
from shared.postgresql.tables import backup, dead_letter, outbox
from shared.postgresql.transactions import transaction
from shared.runtime import probes
from tests.conftest import scrape, wait_for
from tests.servers import forget_settings, kill


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    number = servers.free_port()
    monkeypatch.setenv("PORT", str(number))
    return number


def status_of(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def samples(collector: OutboxCollector) -> dict[str, float]:
    return {
        " ".join([sample.name, *(sample.labels[name] for name in ("function", "replica") if name in sample.labels)]): (
            sample.value
        )
        for family in collector.collect()
        for sample in family.samples
    }


def test_a_process_whose_work_stands_still_is_not_alive(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heart = probes.Heart()
    probes.serve(heart)
    assert status_of(port, "/health/live") == 200
    monkeypatch.setattr(probes, "STUCK_SECONDS", 0.0)
    assert status_of(port, "/health/live") == 503
    heart.beat()
    monkeypatch.setattr(probes, "STUCK_SECONDS", 60.0)
    assert status_of(port, "/health/live") == 200
    assert status_of(port, "/elsewhere") == 404


def test_what_waits_and_the_dead_letters_are_counted(own_database: Process) -> None:
    assert samples(OutboxCollector()) == {"outbox_waiting_events": 0, "outbox_waiting_seconds": 0}
    event = {"type": "tested", "data": {}, "request_id": ""}
    letter = {"source": "/tests", "type": "tested", "attributes": {}, "data": b"", "error": "500"}
    with transaction() as connection:
        for minutes in (1, 2):
            ago = func.now() - func.make_interval(0, 0, 0, 0, 0, minutes)
            ids = {"id": uuid.uuid4(), "subject": uuid.uuid4()}
            connection.execute(insert(outbox).values(**event, **ids, occurred_at=ago))
        for number, function in enumerate(("send_email", "send_email", "send_sms")):
            connection.execute(insert(dead_letter).values(**letter, event_id=f"{number}", function=function))
        retried = letter | {"event_id": "4", "function": "verify_business", "retried_at": func.now()}
        connection.execute(insert(dead_letter).values(retried))
    found = samples(OutboxCollector())
    assert 120 <= found.pop("outbox_waiting_seconds") < 180
    assert found == {"outbox_waiting_events": 2, "dead_letters send_email": 2, "dead_letters send_sms": 1}


def test_a_replica_shows_how_far_it_is_behind(own_database: Process, tmp_path: Path) -> None:
    """Here something that reads the primary's log as a replica does."""
    url = urlsplit(os.environ["DATABASE_URL"])
    name = {"PGAPPNAME": "postgres-2", "PGPASSWORD": url.password or ""}
    address = ["--host", LOOPBACK, "--port", str(url.port), "--username", url.username or ""]
    command: list[str | Path] = [servers.POSTGRESQL / "pg_receivewal", *address, "--directory", tmp_path]
    with subprocess.Popen(command, env=os.environ | name, stderr=subprocess.DEVNULL) as replica:
        try:
            wait_for(lambda: "replication_lag_seconds postgres-2" in samples(OutboxCollector()))
            assert 0 <= samples(OutboxCollector())["replication_lag_seconds postgres-2"] < 60
        finally:
            replica.terminate()


def test_a_role_that_may_not_see_replicas_says_nothing_of_them(
    own_database: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as connection:
        connection.execute(text("CREATE ROLE plain LOGIN PASSWORD 'plain'"))
        connection.execute(text("GRANT plain TO CURRENT_USER"))
        connection.execute(text("GRANT USAGE, CREATE ON SCHEMA public TO plain"))
        connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain"))
    url = urlsplit(os.environ["DATABASE_URL"])
    primary = ["--dbname", os.environ["DATABASE_URL"]]
    command: list[str | Path] = [servers.POSTGRESQL / "pg_receivewal", *primary, "--directory", tmp_path]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as replica:
        try:
            wait_for(lambda: any("replication_lag" in name for name in samples(OutboxCollector())))
            with transaction() as connection:
                # As where the owner of the tables is no superuser and has no pg_monitor.
                connection.execute(text("ALTER FUNCTION replication_lag() OWNER TO plain"))
            monkeypatch.setenv("DATABASE_URL", f"postgresql://plain:plain@{url.hostname}:{url.port}{url.path}")
            forget_settings()
            assert samples(OutboxCollector()) == {"outbox_waiting_events": 0, "outbox_waiting_seconds": 0}
        finally:
            replica.terminate()


def test_the_newest_backup_is_shown_with_its_age_and_size(own_database: Process) -> None:
    with transaction() as connection:
        for hours in (50, 2, 26):
            row = {"name": f"{hours}", "taken_at": func.now() - timedelta(hours=hours), "size": 1000 + hours}
            connection.execute(insert(backup).values(row))
    found = samples(OutboxCollector())
    assert found["backup_size_bytes"] == 1002
    assert 7200 <= found["backup_age_seconds"] < 7260


def test_nothing_is_said_of_a_database_that_is_away(own_database: Process) -> None:
    kill(own_database)
    assert samples(OutboxCollector()) == {}


def test_the_relay_of_make_up_leads_and_counts_what_it_sends() -> None:
    def metrics() -> dict[str, float]:
        return {sample.name: sample.value for family in scrape("relay") for sample in family.samples}

    wait_for(lambda: metrics()["relay_leads"] == 1)
    event = {"id": uuid.uuid4(), "type": "tested", "subject": uuid.uuid4(), "data": {}, "request_id": ""}
    before = metrics()["relay_sent_events_total"]
    with transaction() as connection:
        connection.execute(insert(outbox).values(event))
    wait_for(lambda: metrics()["relay_sent_events_total"] > before)
