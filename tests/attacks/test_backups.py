"""Attacks on backups by who can write to their store, against the commands that an operator types."""

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from knative.keys import new_backup_key, recipient_of
from knative.operations.backup.restore import functions_url
from tests.conftest import ROOT, wait_for
from tests.knative.test_backup import connected, database, empty, filled

__all__ = ["database", "empty", "filled"]

Aegis = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def aegis(store: Path, database: str, tmp_path: Path) -> Aegis:
    """The command of an operator, who has the identity in a file."""
    identity = new_backup_key()
    (tmp_path / "identity.txt").write_text(f"{identity}\n")
    environment = {
        **os.environ,
        "DATABASE_URL": functions_url(database),
        "OWNER_DATABASE_URL": database,
        "BACKUP_STORE": str(store),
        "BACKUP_RECIPIENTS": recipient_of(identity),
        "BACKUP_MANIFEST_KEY": "k" * 32,
        "BACKUP_IDENTITY": "",
    }

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        opening = ["--identity", str(tmp_path / "identity.txt")] if arguments[0] == "restore" else []
        return subprocess.run(
            [ROOT / "aegis", *arguments, *opening],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def name_at(moment: datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%SZ}"


def names(store: Path) -> set[str]:
    return {path.name for path in store.iterdir()} if store.exists() else set()


def taken(aegis: Aegis, store: Path) -> str:
    """The name of a new backup."""
    before = names(store)
    wait_for(lambda: name_at(datetime.now(UTC)) not in before)  # a name is a second
    done = aegis("backup")
    assert done.returncode == 0, done.stderr
    (name,) = names(store) - before
    return name


def test_twelve_objects_of_one_byte_delete_no_backup(aegis: Aegis, store: Path) -> None:
    genuine = {taken(aegis, store)}
    forged = {f"2999{month:02}01T000000Z" for month in range(1, 13)}
    for name in forged:
        (store / name).mkdir()
        (store / name / "manifest.json").write_bytes(b"x")
    wait_for(lambda: name_at(datetime.now(UTC)) not in names(store))
    done = aegis("backup")
    assert done.returncode == 0, done.stderr
    assert "12 backups in the store cannot be verified" in done.stderr
    there = names(store)
    assert there > genuine | forged
    assert len(there - forged) == 2
    listed = {line.split()[0]: line for line in aegis("backups").stdout.splitlines()[1:]}
    assert {name for name, line in listed.items() if "not verified" in line} == forged


def test_an_old_backup_under_a_newer_name_does_not_bring_a_suspended_administrator_back(
    aegis: Aegis, store: Path, database: str, empty: str
) -> None:
    with connected(database) as connection:
        connection.execute(text("UPDATE account SET roles = '{admin}' WHERE email LIKE 'first1%'"))
    old = taken(aegis, store)
    with connected(database) as connection:
        connection.execute(text("UPDATE account SET roles = '{}', status = 'suspended' WHERE email LIKE 'first1%'"))
    last = taken(aegis, store)

    newer = name_at(datetime.now(UTC) + timedelta(seconds=60))
    shutil.copytree(store / old, store / newer)
    manifest = store / newer / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, newer))
    refused = aegis("restore", newer, "--into", empty)
    assert (refused.returncode, "not authentic" in refused.stderr) == (1, True), refused.stderr
    refused = aegis("restore", old, "--into", empty)
    assert (refused.returncode, "--older" in refused.stderr) == (1, True), refused.stderr
    done = aegis("restore", "latest", "--into", empty)
    assert (done.returncode, last in done.stdout) == (0, True), done.stderr
    with connected(empty) as connection:
        administrators = connection.scalar(text("SELECT count(*) FROM account WHERE roles <> '{}'"))
        suspended = connection.scalar(text("SELECT count(*) FROM account WHERE status = 'suspended'"))
    assert administrators == 0
    assert suspended
