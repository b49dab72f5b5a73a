"""The drill: it finds a backup good that is, and leaves nothing behind."""

import dataclasses
import io
import os
from pathlib import Path

import pytest
from sqlalchemy import text

from knative.local.supervisor import Process
from knative.operations.backup import manifest
from knative.operations.backup.drill import PREFIX, drill
from knative.operations.backup.store import Vault
from knative.terminal import Progress
from tests.knative.test_backup import accounts, backup, connected, fill, new_vault, refusal


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return new_vault(tmp_path / "backups")


def databases(url: str) -> set[str]:
    with connected(url) as connection:
        return set(connection.scalars(text("SELECT datname FROM pg_database")).all())


def test_a_drill_restores_the_latest_backup_beside_the_service_and_calls_functions_on_it(
    own_database: Process, vault: Vault
) -> None:
    url = os.environ["DATABASE_URL"]
    fill(url, "somebody", 30)
    made = backup(url, vault)
    with connected(url, isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {PREFIX}left_by_one_that_died"))
    before = accounts(url)
    said = drill(vault, url, Progress(io.StringIO())).text
    assert f"The latest backup, {made.name}, is 0." in said
    assert f"All {sum(made.rows.values())} rows of {len(made.rows)} tables were restored" in said
    assert "8 functions answered as they should on it, for a new user and 20 of the backup." in said
    assert accounts(url) == before
    assert [name for name in databases(url) if name.startswith(PREFIX)] == []

    # One row fewer than there are: then it is not the backup that its manifest states.
    rows = {**made.rows, "account": made.rows["account"] - 1}
    manifest.write(vault, dataclasses.replace(made, rows=rows))
    assert "the table account has 30 rows instead of 29" in refusal(lambda: drill(vault, url, Progress(io.StringIO())))
    assert [name for name in databases(url) if name.startswith(PREFIX)] == []
