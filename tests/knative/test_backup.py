"""Backups: taken while people write, restored as a whole or not at all, whoever dies and whatever is damaged."""

import dataclasses
import io
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, make_url, text

from knative.commands import backups
from knative.local import servers
from knative.local.servers import free_port
from knative.local.supervisor import Process, Supervisor
from knative.operations.backup import authenticity, listing, manifest, restore, retention, take
from knative.operations.backup.manifest import Manifest
from knative.operations.backup.postgresql import BACKUP_LOCK, RESTORE_LOCK, alone
from knative.operations.backup.store import DUMP, MANIFEST, PURGED, Folder, Store, Vault
from knative.terminal import Progress, Refused
from shared.postgresql.migrate import MIGRATIONS
from tests.conftest import ROOT, call, create_user, fire, issue, log_in, wait_for, withdrawn_since

KEEP = retention.Keep(7, 4, 12)
ACCOUNTS = 2000
KILLS = 3

FILL = """
    INSERT INTO account (id, email, canonical_email, locale, status)
    SELECT gen_random_uuid(), name || '@example.com', name || '@example.com', 'ko', 'active'
    FROM (SELECT :prefix || number AS name FROM generate_series(1, :count) AS number) AS names RETURNING id
"""


@contextmanager
def connected(url: str, **options: Any) -> Iterator[Connection]:
    engine = create_engine(make_url(url).set(drivername="postgresql+pg8000"), **options)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def fill(url: str, prefix: str, count: int) -> set[Any]:
    """Adds accounts; their ids."""
    with connected(url) as connection:
        return set(connection.scalars(text(FILL), {"prefix": prefix, "count": count}).all())


def accounts(url: str) -> set[Any]:
    """The ids of all accounts of a database."""
    with connected(url) as connection:
        return set(connection.scalars(text("SELECT id FROM account")).all())


@pytest.fixture(scope="module")
def filled() -> Iterator[str]:
    """The URL of a database with accounts, from which others are copied."""
    with new_database() as url:
        migrate(url)
        fill(url, "first", ACCOUNTS)
        yield url


@contextmanager
def new_database(template: str = "template1") -> Iterator[str]:
    """A database on the server of all tests, dropped at the end."""
    server, name = os.environ["OWNER_DATABASE_URL"], f"backup_{secrets.token_hex(6)}"
    with connected(server, isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with connected(server, isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def migrate(url: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "shared.postgresql.migrate"],
        env={**os.environ, "OWNER_DATABASE_URL": url, "DATABASE_URL": restore.functions_url(url)},
        check=True,
    )


@pytest.fixture
def database(filled: str) -> Iterator[str]:
    """The URL of a database with accounts."""
    with new_database(make_url(filled).database or "") as url:
        yield url


@pytest.fixture
def empty() -> Iterator[str]:
    """The URL of a database without tables."""
    with new_database() as url:
        yield url


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return new_vault(tmp_path / "backups")


def new_vault(place: Path | Store) -> Vault:
    """Keys that nothing else has."""
    identity = pyrage.x25519.Identity.generate()
    store = Folder(place) if isinstance(place, Path) else place
    return Vault(store, (secrets.token_hex(32).encode(),), (str(identity.to_public()),), (str(identity),))


def backup(database: str, vault: Vault, keep: retention.Keep = KEEP) -> Manifest:
    """The newest backup, just taken."""
    known = authenticity.good(vault)
    wait_for(lambda: manifest.new_name() not in known)  # a name is a second
    take.take(database, vault, keep, Progress(io.StringIO()))
    return restore.find(vault, restore.LATEST)


def bring_back(vault: Vault, into: str, name: str = restore.LATEST, **how: Any) -> Manifest:
    return restore.restore(vault, name, into, Progress(io.StringIO()), **how)


def refusal(do: Callable[[], Any]) -> str:
    with pytest.raises(Refused) as refused:
        do()
    return str(refused.value)


def file_of(vault: Vault, made: Manifest, part: str) -> Path:
    assert isinstance(vault.store, Folder)
    return vault.store._root / made.name / part


# --- what is in it


def test_every_row_that_was_committed_before_a_backup_comes_back_with_it(
    database: str, empty: str, vault: Vault
) -> None:
    committed: set[Any] = set()
    stopped = threading.Event()

    def write() -> None:
        number = 0
        while not stopped.is_set():
            committed.update(fill(database, f"later{number}-", 3))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(lambda: committed)
        before = set(committed)
        made = backup(database, vault)
        wait_for(lambda: len(committed) > len(before) + 3)  # it writes on
    finally:
        stopped.set()
        writer.join()
    bring_back(vault, empty)
    restored = accounts(empty)
    assert before <= restored <= accounts(database)
    assert len(restored) == made.rows["account"] >= ACCOUNTS
    assert made.schema == ScriptDirectory(str(MIGRATIONS)).get_current_head()


def test_nothing_of_it_can_be_read_without_the_key(database: str, vault: Vault) -> None:
    fill(database, "somebody", 1)
    made = backup(database, vault)
    content = file_of(vault, made, DUMP).read_bytes()
    assert content.startswith(b"age-encryption.org/v1\n")
    assert b"PGDMP" not in content
    opened = pyrage.decrypt(content, [pyrage.x25519.Identity.from_str(vault.identities[0])])
    assert opened.startswith(b"PGDMP")
    assert b"somebody" not in file_of(vault, made, MANIFEST).read_bytes()


def test_a_database_that_only_a_migration_has_met_counts_as_empty(database: str, empty: str, vault: Vault) -> None:
    backup(database, vault)
    migrate(empty)
    bring_back(vault, empty)
    assert accounts(empty) == accounts(database)


def test_a_database_that_holds_something_is_replaced_by_force_alone(database: str, empty: str, vault: Vault) -> None:
    backup(database, vault)
    with connected(empty) as connection:
        connection.execute(text("CREATE TABLE of_somebody_else (number int)"))
    assert "not empty" in refusal(lambda: bring_back(vault, empty))
    before = accounts(database)
    fill(database, "after", 5)
    assert "not empty" in refusal(lambda: bring_back(vault, database))
    assert len(accounts(database)) == len(before) + 5
    for target in (empty, database):
        bring_back(vault, target, force=True)
        assert accounts(target) == before
        with connected(target) as connection:
            assert connection.scalar(text("SELECT to_regclass('of_somebody_else')")) is None
    fill(database, "on", 1)  # which the triggers and partitions of the outbox are there for


def test_of_several_servers_the_one_that_takes_writes_is_backed_up_and_restored(database: str, vault: Vault) -> None:
    there = make_url(database)
    login, _, place = database.partition("@")
    several = f"{login}@{there.host}:{free_port()},{place}?target_session_attrs=read-write"  # nobody is at the first
    before = accounts(database)
    backup(several, vault)
    fill(database, "later", 1)
    bring_back(vault, several, force=True)
    assert accounts(database) == before


def test_a_second_backup_at_the_same_time_is_refused(database: str, vault: Vault) -> None:
    with alone(database, BACKUP_LOCK, "A test"):
        assert "is running" in refusal(lambda: backup(database, vault))
    backup(database, vault)


# --- what is damaged


def truncate(vault: Vault, made: Manifest) -> Vault:
    path = file_of(vault, made, DUMP)
    path.write_bytes(path.read_bytes()[:-100])
    return vault


def alter(vault: Vault, made: Manifest) -> Vault:
    path = file_of(vault, made, DUMP)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return vault


def exchange(vault: Vault, made: Manifest) -> Vault:
    """For another good one, which the manifest does not state."""
    recipient = pyrage.x25519.Identity.from_str(vault.identities[0]).to_public()
    path = file_of(vault, made, DUMP)
    opened = pyrage.decrypt(path.read_bytes(), [pyrage.x25519.Identity.from_str(vault.identities[0])])
    path.write_bytes(pyrage.encrypt(opened, [recipient]))
    return vault


def lose(vault: Vault, made: Manifest) -> Vault:
    file_of(vault, made, PURGED).unlink()
    return vault


def take_another_key(vault: Vault, made: Manifest) -> Vault:
    return vault._replace(identities=(str(pyrage.x25519.Identity.generate()),))


def state(**changes: Any) -> Callable[[Vault, Manifest], Vault]:
    def change(vault: Vault, made: Manifest) -> Vault:
        path = file_of(vault, made, MANIFEST)
        stated = json.loads(json.loads(path.read_text())["manifest"]) | changes
        manifest._write(vault, made.name, MANIFEST, json.dumps(stated))
        return vault

    return change


def scribble(vault: Vault, made: Manifest) -> Vault:
    file_of(vault, made, MANIFEST).write_text('{"format": 1')
    return vault


def of_a_newer_program(vault: Vault, made: Manifest) -> Vault:
    file_of(vault, made, MANIFEST).write_text('{"format": 3}')
    return vault


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "does not decrypt"),
        (alter, "does not decrypt"),
        (exchange, "its checksum differs from the manifest"),
        (lose, "no longer has purged.age"),
        (take_another_key, "encrypted to a recipient that does not match this identity"),
        (scribble, "manifest of the backup"),
        (state(name="20260101T170000Z"), "manifest of the backup"),
        (state(rows={"account'; DROP TABLE account; --": 1}), "manifest of the backup"),
        (of_a_newer_program, "has the format 3"),
        (state(schema="9999"), "a newer release made it"),
        (state(rows={"account": 3}), f"the table account has {ACCOUNTS} rows instead of 3"),
    ],
)
def test_what_is_damaged_is_refused_and_changes_nothing(
    database: str, vault: Vault, damage: Callable[[Vault, Manifest], Vault], said: str
) -> None:
    made = backup(database, vault)
    fill(database, "after", 5)
    before = accounts(database)
    damaged = damage(vault, made)
    assert said in refusal(lambda: bring_back(damaged, database, made.name, force=True))
    assert accounts(database) == before


def test_a_backup_that_cannot_be_read_back_does_not_count(
    database: str, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "write", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    good = refusal(lambda: backup(database, vault))
    assert "There is no new backup" in good
    assert vault.store.names() == []


def test_a_name_that_is_no_backup_is_refused(database: str, vault: Vault) -> None:
    for name in ("latest", "20260101T000000Z", "../../etc"):
        assert "There is no" in refusal(lambda name=name: bring_back(vault, database, name, force=True))  # type: ignore[misc]


# --- who dies


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2" && cp -r "$BACKUP_STORE/." "$2" && export BACKUP_STORE="$2" && shift 2 || exit 99
"$@" backup
echo "ended with $?"
"$@" backups
"""
"""In a mount namespace of its own, which ends with it: a disk of so many bytes, at a folder, for a command."""


def command(*arguments: str, database: str, vault: Vault, under: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """The command, or, with these words before it, another that runs it."""
    assert isinstance(vault.store, Folder)
    return subprocess.Popen(
        [*under, sys.executable, "-m", "knative.aegis", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "OWNER_DATABASE_URL": database,
            "DATABASE_URL": restore.functions_url(database),
            "BACKUP_STORE": str(vault.store._root),
            "BACKUP_RECIPIENTS": ",".join(vault.recipients),
            "BACKUP_MANIFEST_KEY": ",".join(key.decode() for key in vault.manifest_keys),
            "BACKUP_IDENTITY": "".join(vault.identities),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


@pytest.fixture(scope="module")
def in_a_namespace() -> Sequence[str]:
    """What lets a command mount file systems that nobody else sees."""
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NO USER NAMESPACES: a full disk was not tested")
    return words


def test_a_full_disk_leaves_no_backup_and_the_earlier_ones_as_they_were(
    database: str, vault: Vault, in_a_namespace: Sequence[str], tmp_path: Path
) -> None:
    made = backup(database, vault)
    wait_for(lambda: manifest.new_name() != made.name)
    disk = tmp_path / "disk"
    disk.mkdir()
    under = [*in_a_namespace, "sh", "-c", ON_A_SMALL_DISK, "sh", str(made.size * 3 // 2), str(disk)]
    said, errors = command(database=database, vault=vault, under=under).communicate(timeout=300)
    assert "There is no new backup; earlier ones are unchanged" in errors
    assert "No space left on device" in errors
    assert "ended with 1" in said
    assert re.findall(r"^\d{8}T\d{6}Z", said, flags=re.MULTILINE) == [made.name]


def test_ctrl_c_ends_a_backup_in_a_line_and_leaves_nothing(database: str, vault: Vault) -> None:
    with connected(database) as connection:
        # A table with partitions holds no rows, so pg_dump is the first to ask for it, and waits.
        connection.execute(text("LOCK TABLE ONLY outbox IN ACCESS EXCLUSIVE MODE"))
        process = command("backup", database=database, vault=vault)
        wait_for(vault.store.names)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("Stopped by Ctrl-C.\n")
    assert "Traceback" not in said
    assert vault.store.names() == []


def test_of_two_restores_at_once_one_is_refused(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    with alone(database, RESTORE_LOCK, "A test"):
        assert "another restore of this database is running" in refusal(lambda: bring_back(vault, database, force=True))
    assert bring_back(vault, database, force=True) == made


def test_a_backup_that_is_killed_is_none_and_goes_with_the_next(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    chance = random.Random(1)  # noqa: S311
    for _ in range(KILLS):
        kill_during(command("backup", database=database, vault=vault), vault, chance.uniform(0, 0.5))
        assert {found.name for found in authenticity.newest_first(vault)} >= {made.name}
    wait_for(lambda: is_free(database))
    last = backup(database, vault)
    assert last.name > made.name
    names = vault.store.names()
    assert names == sorted(authenticity.good(vault))
    assert {made.rows["account"], last.rows["account"]} == {ACCOUNTS}


def kill_during(process: "subprocess.Popen[str]", vault: Vault, seconds: float) -> None:
    """kill -9, so long after the process has begun to work."""
    assert process.stderr
    known = set(vault.store.names())
    wait_for(lambda: set(vault.store.names()) - known or process.poll() is not None)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def is_free(database: str) -> bool:
    """Whether PostgreSQL has noticed who died."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with connected(database) as connection:
        return bool(connection.scalar(text(others)) == 0)


def test_a_restore_that_is_killed_leaves_what_was_there_or_the_whole_backup(database: str, vault: Vault) -> None:
    backup(database, vault)
    in_backup = accounts(database)
    fill(database, "after", 5)
    before = accounts(database)
    chance = random.Random(1)  # noqa: S311
    for _ in range(KILLS):
        process = command("restore", "latest", "--force", database=database, vault=vault)
        assert process.stderr
        assert "rows" in process.stderr.readline()
        time.sleep(chance.uniform(0, 0.8))
        process.kill()
        process.communicate()
        wait_for(lambda: is_free(database))
        assert accounts(database) in (before, in_backup)
    bring_back(vault, database, force=True)
    assert accounts(database) == in_backup


# --- who must not come back


def test_a_purged_account_does_not_come_back_with_a_backup_from_before(database: str, empty: str, vault: Vault) -> None:
    first = backup(database, vault)
    with connected(database) as connection:
        gone = set(connection.scalars(text("DELETE FROM account WHERE email LIKE 'first1%' RETURNING id")).all())
    backup(database, vault)
    with connected(database) as connection:
        since = set(connection.scalars(text("DELETE FROM account WHERE email LIKE 'first2%' RETURNING id")).all())
    assert gone
    assert since
    # Elsewhere, by what the newest backup knows; in the database itself, by what that knows as well.
    bring_back(vault, empty, first.name, older=True)
    assert len(accounts(empty)) == ACCOUNTS - len(gone)
    assert accounts(empty) & gone == set()
    bring_back(vault, database, first.name, force=True, older=True)
    assert len(accounts(database)) == ACCOUNTS - len(gone) - len(since)
    # And so that the next backup knows it, too.
    with connected(database) as connection:
        assert set(connection.scalars(text("SELECT account_id FROM purged_account")).all()) == gone | since


def test_who_was_purged_since_the_last_backup_cannot_log_in_and_is_purged_again(
    own_database: Process, vault: Vault, address: str
) -> None:
    url = os.environ["DATABASE_URL"]
    user = create_user(address)
    withdrawn_since(timedelta(days=40), user)
    backup(url, vault)
    with connected(url) as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))  # the server is lost, and what it knew
        connection.execute(text("CREATE SCHEMA public"))
    bring_back(vault, url)
    assert accounts(url) == {user.id}
    assert call("login", body={"email": address, "password": user.password}).status_code == 401
    assert fire("purge_withdrawn").status_code == 204
    assert accounts(url) == set()


def test_sessions_and_links_of_a_backup_are_void_and_the_password_is_not(
    own_database: Process, own_redis: Process, vault: Vault, address: str
) -> None:
    url = os.environ["DATABASE_URL"]
    user = create_user(address)
    tokens, link = log_in(user), issue(user, "reset_password")
    backup(url, vault)
    bring_back(vault, url, force=True)
    assert call("refresh_token", body={"refresh_token": tokens["refresh_token"]}).status_code == 401
    renewed = {"token": link, "password": "a wholly new choice of words"}
    assert call("reset_password", body=renewed).status_code == 400
    assert call("get_profile", log_in(user)).status_code == 200


# --- which are kept


def names(*ages: int, newest: str = "2026-07-15T17:00:00") -> list[str]:
    """Of backups so many days old."""
    return [f"{datetime.fromisoformat(newest) - timedelta(days=age):%Y%m%dT%H%M%SZ}" for age in ages]


def test_the_last_of_each_of_the_last_days_weeks_and_months_is_kept() -> None:
    daily = names(*range(500))
    kept = retention.chosen(daily, KEEP)
    assert sorted(kept, reverse=True)[:7] == daily[:7]
    weeks = {manifest.taken_at(name).isocalendar()[:2] for name in kept}
    months = {name[:6] for name in kept}
    assert len(months) == 12
    assert len(weeks) >= 4
    assert len(kept) <= 7 + 4 + 12
    assert names(14)[0] not in kept


def test_all_of_the_last_day_are_kept_and_of_a_day_before_the_last() -> None:
    today = ["20260715T010000Z", "20260715T230000Z"]
    yesterday = ["20260714T010000Z", "20260714T220000Z"]
    assert retention.chosen([*yesterday, *today], KEEP) == {*today, yesterday[-1]}
    assert retention.chosen(yesterday, retention.Keep(1, 0, 0)) == set(yesterday)
    assert retention.chosen(today[:1], retention.Keep(1, 0, 0)) == {today[0]}


def renamed(vault: Vault, made: Manifest, name: str) -> Manifest:
    """As if it had been taken at another time."""
    assert isinstance(vault.store, Folder)
    wait_for(lambda: manifest.new_name() != made.name)  # which the database still remembers
    (vault.store._root / made.name).rename(vault.store._root / name)
    other = dataclasses.replace(made, name=name)
    manifest.write(vault, other)
    return other


def test_a_good_backup_makes_room_and_what_is_not_ours_stays(database: str, vault: Vault) -> None:
    assert isinstance(vault.store, Folder)
    old = [renamed(vault, backup(database, vault), f"2026010{day}T170000Z").name for day in range(1, 4)]
    (vault.store._root / "lost+found").mkdir()
    assert old[0] in listing.table(vault).text
    last = backup(database, vault, retention.Keep(1, 1, 1))
    assert vault.store.names() == [*old[1:], last.name, "lost+found"]
    with connected(database) as connection:
        known = connection.execute(text("SELECT name, size, taken_at FROM backup")).all()
    assert [tuple(row) for row in known] == [(last.name, last.size, last.taken_at)]


# --- the commands


def test_backups_are_listed_in_columns_however_large_they_are(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    names = "20260101T170000Z", "20260102T170000Z", "20260103T170000Z"
    for name, size, accounts in zip(names[:2], (10**12, 5), (10**9, 7), strict=True):
        parts = manifest.Part(size, "0" * 64), manifest.Part(0, "0" * 64)
        manifest.write(
            vault, Manifest(manifest.FORMAT, name, "", "0042_sessions", "18.1", "0/0", {"account": accounts}, *parts)
        )
        for part, bytes_ in ((DUMP, size), (PURGED, 0)):
            with (tmp_path / name / part).open("wb") as file:
                file.truncate(bytes_)  # takes no room
    with vault.store.write(names[2], MANIFEST) as sink:
        sink.write(b"damaged")
    header, damaged, small, large = listing.table(vault).text.splitlines()
    assert damaged.startswith(f"{names[2]}  not verified: The manifest of the backup")
    assert large.split()[3:] == ["1,000,000,000,000", "1,000,000,000", "0042_sessions", "18.1"]
    assert small.split()[3:] == ["5", "7", "0042_sessions", "18.1"]
    for title, left, right in (("size", "5  ", "000  "), ("accounts", "7  ", "000  ")):
        end = header.index(title) + len(title) + 2
        assert (small[:end].endswith(left), large[:end].endswith(right)) == (True, True)
    assert {line.index("18.1") for line in (small, large)} == {header.index("PostgreSQL")}


def test_a_backup_into_another_store_in_the_same_second_is_no_obstacle(database: str, vault: Vault) -> None:
    with connected(database) as connection:
        connection.execute(
            text(
                "INSERT INTO backup (name, taken_at, size) "
                "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS\"Z\"'), at, 1 "
                "FROM generate_series(date_trunc('second', now()), now() + interval '30 s', interval '1 s') AS at"
            )
        )
    made = backup(database, vault)
    with connected(database) as connection:
        kept = connection.execute(text("SELECT name, size FROM backup")).all()
    assert [tuple(row) for row in kept] == [(made.name, made.size)]


def test_an_operator_takes_lists_and_restores_backups(database: str, vault: Vault) -> None:
    def run(*arguments: str) -> str:
        process = command(*arguments, database=database, vault=vault)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return said

    assert "There are no backups" in listing.table(vault).text
    assert "read back and found good" in run("backup")
    (name,) = vault.store.names()
    assert f"{ACCOUNTS:,}" in run("backups")
    (listed,) = json.loads(run("backups", "--json"))
    assert (listed["name"], listed["accounts"], listed["problem"]) == (name, ACCOUNTS, None)
    assert f"Restored {name}." in run("restore", name, "--force")
    process = command("restore", name, database=database, vault=vault)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, "--force" in said) == (1, True)
    assert vault.identities[0] not in said


@pytest.mark.parametrize("value", [{"name": "20260131T170000Z", "rows": 12}, [{"name": "20260131T170000Z"}], []])
def test_the_json_of_a_command_in_a_cluster_is_found_behind_its_progress(value: Any) -> None:
    log = f'    0 s  counting rows\n{{"level": "WARNING"}}\n{json.dumps(value, indent=2)}'
    assert backups.document(log) == value


def test_a_database_that_is_reached_a_moment_later_is_waited_for(
    database: str, vault: Vault, supervisor: Supervisor, tmp_path: Path
) -> None:
    backup(database, vault)
    server, late = servers.postgresql(tmp_path, "password")
    restoring = command("restore", "latest", database=late, vault=vault)
    assert restoring.stderr
    assert "waiting for the database at 127.0.0.1:" in restoring.stderr.readline()
    supervisor.start(server)
    _, said = restoring.communicate(timeout=300)
    assert restoring.returncode == 0, said
    assert len(accounts(late)) >= ACCOUNTS


def test_a_database_that_is_away_and_settings_that_are_not_complete_are_said(vault: Vault) -> None:
    process = command("backup", database="postgresql://aegis:hidden@127.0.0.1:1/none", vault=vault)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "The database at 127.0.0.1:1/none cannot be reached" in said
    assert "hidden" not in said
    process = command("backup", database=os.environ["OWNER_DATABASE_URL"], vault=vault._replace(identities=("no key",)))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "BACKUP_IDENTITY is not an age identity" in said
    assert "no key" not in said
