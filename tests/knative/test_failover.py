"""A primary that dies, or goes, and the replica that takes its place: by `aegis failover`, as an operator meets it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pg8000.dbapi
import psutil
import pytest
import urllib3
from sqlalchemy import select, text

from knative.local import servers
from knative.local.failover import failover
from knative.local.replica import NAMES, primary, replica, urls
from knative.local.servers import STANDBY
from knative.local.supervisor import Process, StartFailed, Supervisor
from knative.terminal import Refused
from shared.postgresql import driver
from shared.postgresql.migrate import migrate
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import settings
from tests.conftest import PASSWORD, ROOT, create_user, wait_for
from tests.knative.test_up import running, try_until, wait_for_line
from tests.servers import Own, forget_settings, function_process, kill, start_again

RECOVERED_SECONDS = 10.0


@pytest.fixture
def pair(own: Own, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Process]:
    """A primary and its replica by their names, used by this process as the functions of `make up REPLICA=1` do."""
    first = own("DATABASE_URL", *servers.postgresql(tmp_path, "password"))
    migrate()
    primary_url = settings().database_url
    second, replica_url = replica(tmp_path, primary_url)
    supervisor.start(second)
    supervisor.wait_until_ready(second, seconds=30)
    environment = urls(tmp_path, primary_url, replica_url)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forget_settings()
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    return dict(zip(NAMES, (first, second), strict=True))


def answer_of(wanted: str, query: str) -> Any:
    """Of the server that takes writes, or of the standby; nothing while there is none."""
    url = settings().database_url if wanted == "read-write" else settings().replica_database_url
    try:
        connection, _ = driver.connect(url, 5.0)
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchone()[0]
    except (OSError, pg8000.dbapi.Error):
        return None


def catch_up() -> None:
    """Waits until the standby has all that the primary has."""
    position = answer_of("read-write", "SELECT pg_current_wal_insert_lsn()::text")
    wait_for(lambda: answer_of("standby", f"SELECT pg_last_wal_replay_lsn() >= '{position}'"))


@contextmanager
def registering() -> Iterator[list[str]]:
    """Somebody who registers users all the time: the addresses of those of whom they were told that they are in."""
    stopped, known = threading.Event(), list[str]()

    def register() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            try:
                create_user(address := f"user-{number}@example.com")
            except ServiceUnavailable:
                stopped.wait(0.1)
            else:
                known.append(address)

    thread = threading.Thread(target=register)
    thread.start()
    try:
        yield known
    finally:
        stopped.set()
        thread.join()


def stored() -> set[str]:
    with transaction() as connection:
        return set(connection.scalars(select(account.c.email)))


def test_when_a_primary_that_runs_gives_way_nothing_is_lost_and_it_follows_the_other(
    pair: dict[str, Process], supervisor: Supervisor, tmp_path: Path
) -> None:
    with registering() as known:
        wait_for(lambda: len(known) > 3)
        told = failover(tmp_path).text
        before = len(known)
        wait_for(lambda: len(known) > before, seconds=RECOVERED_SECONDS)
    assert "nothing is lost" in told
    assert set(known) <= stored()

    start_again(supervisor, pair["postgresql"])
    catch_up()
    create_user("late@example.com")
    wait_for(lambda: answer_of("standby", "SELECT count(*) FROM account WHERE email = 'late@example.com'"))


def test_there_and_back_again(pair: dict[str, Process], supervisor: Supervisor, tmp_path: Path) -> None:
    create_user("kim@example.com")
    failover(tmp_path)
    start_again(supervisor, pair["postgresql"])
    catch_up()
    assert "postgresql is the primary" in failover(tmp_path).text
    wait_for(is_writable, seconds=RECOVERED_SECONDS)
    assert stored() == {"kim@example.com"}


def is_writable() -> bool:
    try:
        with transaction() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS written ()"))
    except ServiceUnavailable:
        return False
    return True


def test_a_primary_that_hangs_is_killed_and_never_takes_writes_again(
    pair: dict[str, Process], supervisor: Supervisor, tmp_path: Path
) -> None:
    create_user("kim@example.com")
    catch_up()
    popen = pair["postgresql"].popen
    assert popen
    parent = psutil.Process(popen.pid)
    for process in (parent, *parent.children(recursive=True)):
        process.suspend()
    told = failover(tmp_path).text
    assert "what it had not sent" in told
    wait_for(is_writable, seconds=RECOVERED_SECONDS)
    assert stored() == {"kim@example.com"}
    popen.wait(30)
    start_again(supervisor, pair["postgresql"])
    assert wait_for(lambda: answer_of("standby", "SELECT pg_is_in_recovery()"))
    assert is_writable()


def test_without_a_replica_that_follows_the_primary_stays_the_primary(pair: dict[str, Process], tmp_path: Path) -> None:
    kill(pair["postgresql-2"])
    with pytest.raises(Refused, match="The replica does not answer"):
        failover(tmp_path)
    assert not (tmp_path / "postgresql" / STANDBY).exists()
    assert is_writable()


@pytest.mark.parametrize("environment", [None, {"DATABASE_URL": "postgresql://aegis@127.0.0.1:1/postgres"}])
def test_where_there_is_no_replica_it_says_how_to_get_one(tmp_path: Path, environment: dict[str, str] | None) -> None:
    if environment:
        (tmp_path / "environment.json").write_text(json.dumps(environment))
    done = aegis_failover(tmp_path)
    assert done.returncode == 1
    assert "Nothing was changed." in done.stderr
    assert "make up REPLICA=1" in done.stderr


def aegis_failover(data: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "knative.aegis", "failover"]
    environment = os.environ | {"DATA_DIR": str(data)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_when_the_disk_of_the_primary_is_gone_functions_go_on_with_the_replica_without_a_restart(
    pair: dict[str, Process], supervisor: Supervisor, tmp_path: Path
) -> None:
    kim = create_user("kim@example.com")
    login, url = function_process("login")
    supervisor.start(login)
    supervisor.wait_until_ready(login, seconds=60)
    credentials = {"email": kim.email, "password": kim.password}

    def status() -> int:
        return urllib3.request("POST", f"{url}api/v1/users/login", json=credentials, retries=False, timeout=30).status

    wait_for(lambda: status() == 200)
    catch_up()
    kill(pair["postgresql"])
    (tmp_path / "postgresql" / "global").rename(tmp_path / "lost")
    assert status() == 503

    done = aegis_failover(tmp_path)
    assert "postgresql-2 is the primary" in done.stdout, done.stderr
    wait_for(lambda: status() == 200, seconds=RECOVERED_SECONDS)
    assert login.popen
    assert login.popen.poll() is None
    assert primary(tmp_path) == "postgresql-2"


@pytest.mark.slow
def test_the_replica_of_make_up_takes_the_place_of_its_primary_which_comes_back_as_the_replica(tmp_path: Path) -> None:
    kim = {"email": "kim@example.com", "password": PASSWORD}
    with running(tmp_path, REPLICA="1") as up:
        before = processes(tmp_path)
        assert up.request("/api/v1/users", kim)[0] == 202
        done = aegis_failover(tmp_path)
        assert "nothing is lost" in done.stdout, done.stderr
        wait_for_line(up, "postgresql has ended")
        assert try_until(up, "/api/v1/users", kim | {"email": "lee@example.com"}) == 202
        wait_for(lambda: len(up.request("/inbox", Accept="application/json")[1]) == 2)
        wait_for(lambda: roles(tmp_path) == {"DATABASE_URL": "f", "REPLICA_DATABASE_URL": "t"})
        after = processes(tmp_path)
        assert after | {"postgresql": 0} == before | {"postgresql": 0}


def processes(data: Path) -> dict[str, int]:
    return {name: pid for name, pid, *_ in json.loads((data / "processes.json").read_text())}


def roles(data: Path) -> dict[str, str]:
    """Whether the server is a standby to which each URL of a service leads; empty where it leads to none."""
    environment = json.loads((data / "environment.json").read_text())

    def role(url: str) -> str:
        try:
            return servers.run_program("psql", "--dbname", url, "-At", "--command", "SELECT pg_is_in_recovery()")[0]
        except StartFailed:
            return ""

    return {name: role(environment[name]) for name in ("DATABASE_URL", "REPLICA_DATABASE_URL")}
