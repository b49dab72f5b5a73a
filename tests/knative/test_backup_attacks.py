"""Backups against who may write to their store, and does not have the key of their manifests."""

import io
import json
import os
import secrets
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from knative.operations.backup import authenticity, manifest, restore, retention, take
from knative.operations.backup.store import DUMP, MANIFEST, Folder, Vault
from knative.terminal import Progress
from tests.conftest import wait_for
from tests.knative.test_backup import (
    ACCOUNTS,
    KEEP,
    accounts,
    backup,
    bring_back,
    connected,
    database,
    empty,
    fill,
    filled,
    new_vault,
    refusal,
)

__all__ = ["database", "empty", "filled"]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return new_vault(tmp_path / "backups")


def root(vault: Vault) -> Path:
    assert isinstance(vault.store, Folder)
    return vault.store._root


def plant(vault: Vault, name: str, content: bytes = b"x") -> None:
    (root(vault) / name).mkdir()
    (root(vault) / name / MANIFEST).write_bytes(content)


def renamed(days: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y%m%dT%H%M%SZ}"


def copied_under(vault: Vault, name: str, new: str) -> None:
    """As an attacker would: with the new name in its manifest."""
    shutil.copytree(root(vault) / name, root(vault) / new)
    path = root(vault) / new / MANIFEST
    path.write_text(path.read_text().replace(name, new))


def taken(database: str, vault: Vault, keep: retention.Keep = KEEP) -> tuple[str, str]:
    """What the command says, and what it says on the way."""
    stream = io.StringIO()
    return take.take(database, vault, keep, Progress(stream)).text, stream.getvalue()


def test_forged_names_from_the_future_delete_no_backup(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    forged = [f"2999{month:02}01T000000Z" for month in range(1, 13)]
    for name in forged:
        plant(vault, name)
    last = backup(database, vault, retention.Keep(1, 0, 0))
    assert vault.store.names() == [made.name, last.name, *forged]
    said, told = taken_later(database, vault, last.name)
    assert "12 " in told
    assert forged[0] in told
    assert forged[-1] not in told, "what it names is bounded"
    assert "3 kept" in said


def taken_later(database: str, vault: Vault, last: str) -> tuple[str, str]:
    wait_for(lambda: manifest.new_name() > last)
    return taken(database, vault)


def test_forged_names_of_the_last_days_delete_no_backup(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    forged = [renamed(-days) for days in range(40)]
    for name in forged[1:]:
        plant(vault, name)
    last = backup(database, vault, retention.Keep(1, 0, 0))
    assert {made.name, last.name, *forged[1:]} == set(vault.store.names())


def test_a_backup_that_lost_an_object_does_not_count_and_is_not_deleted(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    (root(vault) / made.name / DUMP).write_bytes(b"short")
    _, told = taken_later(database, vault, made.name)
    assert made.name in told
    assert made.name in vault.store.names()
    assert made.name not in authenticity.good(vault)


@pytest.mark.parametrize(
    "name", ["20269999T999999Z", "20260230T000000Z", "２０２６0101T000000Z", "20260101T000000Z\n", "20260101T240000Z"]
)
def test_a_name_that_is_no_time_is_no_backup(name: str) -> None:
    assert not manifest.is_name(name)


def test_what_stands_in_a_folder_in_place_of_a_manifest_stops_nothing(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    for number, day in enumerate(("20260101", "20260102", "20260103")):
        place = root(vault) / f"{day}T000000Z"
        place.mkdir()
        if number == 0:
            (place / MANIFEST).mkdir()
        elif number == 1:
            os.mkfifo(place / MANIFEST)
        else:
            (place / MANIFEST).symlink_to(root(vault) / made.name / MANIFEST)
    (root(vault) / "20269999T999999Z").mkdir()
    _, told = taken_later(database, vault, made.name)
    assert "20260103T000000Z" in told
    assert made.name in authenticity.good(vault)


def test_what_has_no_manifest_and_was_not_begun_by_us_is_not_deleted(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    (root(vault) / made.name / MANIFEST).unlink()
    _, told = taken_later(database, vault, made.name)
    assert made.name in told
    assert made.name in vault.store.names()


def test_the_last_good_ones_are_kept_whatever_their_age() -> None:
    old = ["20200101T000000Z", "20200102T000000Z", "20200103T000000Z", "20200104T000000Z"]
    assert retention.chosen([*old, "20260101T000000Z"], retention.Keep(1, 0, 0)) == {*old[2:], "20260101T000000Z"}


def test_a_backup_that_its_own_retention_would_not_keep_fails(database: str, vault: Vault) -> None:
    made = backup(database, vault)

    class Losing(Folder):
        """A store from which somebody takes what was just written."""

        def size(self, name: str, part: str) -> int:
            return 0 if name != made.name else super().size(name, part)

    losing = vault._replace(store=Losing(root(vault)))
    wait_for(lambda: manifest.new_name() != made.name)
    assert "would not be kept" in refusal(lambda: take.take(database, losing, KEEP, Progress(io.StringIO())))
    assert made.name in vault.store.names()


def test_an_old_backup_under_a_newer_name_is_not_restored(database: str, vault: Vault) -> None:
    old = backup(database, vault)
    fill(database, "since", 5)
    last = backup(database, vault)
    before = accounts(database)
    newer = f"{last.taken_at + timedelta(seconds=1):%Y%m%dT%H%M%SZ}"
    copied_under(vault, old.name, newer)
    assert restore.find(vault, restore.LATEST).name == last.name
    assert "not authentic" in refusal(lambda: bring_back(vault, database, newer, force=True, older=True))
    assert accounts(database) == before


@pytest.mark.parametrize("field", ["hmac_sha256", "manifest"])
def test_a_manifest_whose_code_or_content_was_changed_is_refused(database: str, vault: Vault, field: str) -> None:
    made = backup(database, vault)
    path = root(vault) / made.name / MANIFEST
    stated = json.loads(path.read_text())
    stated[field] = stated[field][:-1] + ("0" if stated[field][-1] != "0" else "1")
    path.write_text(json.dumps(stated))
    assert "not authentic" in refusal(lambda: bring_back(vault, database, made.name, force=True))
    path.write_text(json.dumps({**stated, "hmac_sha256": None}))
    assert "not authentic" in refusal(lambda: bring_back(vault, database, made.name, force=True))


def test_a_restore_of_an_older_backup_takes_a_flag(database: str, empty: str, vault: Vault) -> None:
    old = backup(database, vault)
    backup(database, vault)
    said = refusal(lambda: bring_back(vault, empty, old.name))
    assert "--older" in said
    assert "suspended" in said
    bring_back(vault, empty, old.name, older=True)
    assert len(accounts(empty)) == ACCOUNTS


def test_the_database_still_knows_the_newest_backup_when_somebody_has_deleted_it(database: str, vault: Vault) -> None:
    backup(database, vault)
    newest = backup(database, vault)
    before = accounts(database)
    shutil.rmtree(root(vault) / newest.name)
    said = refusal(lambda: bring_back(vault, database, force=True))
    assert newest.name in said
    assert "--older" in said
    assert accounts(database) == before
    bring_back(vault, database, force=True, older=True)


def test_a_restored_database_still_knows_the_newest_backup(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    newest = backup(database, vault)
    bring_back(vault, database, made.name, force=True, older=True)
    shutil.rmtree(root(vault) / newest.name)
    assert newest.name in refusal(lambda: bring_back(vault, database, force=True))


def test_a_backup_that_is_gone_from_the_store_is_reported(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    shutil.rmtree(root(vault) / made.name)
    _, told = taken_later(database, vault, made.name)
    assert f"missing from the store: {made.name}" in told


def test_after_the_key_was_replaced_backups_under_the_old_one_count_as_long_as_it_is_kept(
    database: str, empty: str, vault: Vault
) -> None:
    made = backup(database, vault)
    both = vault._replace(manifest_keys=(secrets.token_bytes(32), *vault.manifest_keys))
    assert restore.find(both, made.name) == made
    last = backup(database, both)
    assert "not authentic" in refusal(lambda: restore.find(vault, last.name))


def test_a_backup_of_an_earlier_release_counts_once_an_operator_has_accepted_it(
    database: str, empty: str, vault: Vault
) -> None:
    made = backup(database, vault)
    path = root(vault) / made.name / MANIFEST
    path.write_text(json.dumps({**json.loads(json.loads(path.read_text())["manifest"]), "format": 1}))
    assert "--accept" in refusal(lambda: bring_back(vault, empty, made.name))
    _, told = taken_later(database, vault, made.name)
    assert made.name in told
    assert made.name in vault.store.names()
    said = authenticity.accept(vault, made.name, database)
    assert "Its size matches the record in the database" in said
    assert restore.find(vault, made.name) == made


def test_a_backup_whose_objects_are_others_cannot_be_accepted(database: str, vault: Vault) -> None:
    made = backup(database, vault)
    path = root(vault) / made.name / MANIFEST
    path.write_text(json.dumps({**json.loads(json.loads(path.read_text())["manifest"]), "format": 1}))
    dump = root(vault) / made.name / DUMP
    dump.write_bytes(bytes(dump.stat().st_size))
    assert "checksum" in refusal(lambda: authenticity.accept(vault, made.name, database))


def test_who_was_purged_is_read_from_authentic_backups_alone(database: str, empty: str, vault: Vault) -> None:
    """A forged list would delete whom it names at the next restore."""
    made = backup(database, vault)
    with connected(database) as connection:
        connection.execute(text("DELETE FROM account"))
    last = backup(database, vault)
    copied_under(vault, last.name, renamed(1))
    shutil.rmtree(root(vault) / last.name)
    bring_back(vault, empty, made.name, older=True)
    assert len(accounts(empty)) == ACCOUNTS
