"""The schema that migrations make."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from knative.local import servers
from knative.local.servers import LOOPBACK, free_port
from knative.local.supervisor import Process
from shared.postgresql.migrate import _LOCK, MIGRATIONS, migrate
from shared.postgresql.pool import engine
from shared.postgresql.tables import metadata
from shared.postgresql.transactions import transaction
from shared.runtime.problems import ServiceUnavailable
from tests.conftest import ROOT, somebody_waits_for, wait_for
from tests.servers import Own

WITHOUT_PATIENCE = "from shared.postgresql import migrate; migrate.WAIT_SECONDS = 0; migrate.main()"


@pytest.fixture
def newer(tmp_path: Path) -> Callable[[str], Path]:
    """The tree of a newer release, which has one migration more."""

    def make(statement: str) -> Path:
        tree = tmp_path / "newer"
        shutil.copytree(ROOT / "shared", tree / "shared")
        head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
        (tree / "shared" / "postgresql" / "migrations" / "versions" / "newer.py").write_text(
            f"from alembic import op\n\nrevision, down_revision = 'newer', '{head}'\n\n\n"
            f"def upgrade():\n    op.execute({statement!r})\n"
        )
        return tree

    return make


def start(tree: Path = ROOT, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """The command, as the Job runs it."""
    return subprocess.Popen(
        [sys.executable, *(arguments or ("-m", "shared.postgresql.migrate"))],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(process: "subprocess.Popen[str]", status: int = 1) -> str:
    """What a command that fails says at the end."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in said
    return said


def test_the_migrated_schema_is_that_of_the_tables() -> None:
    with engine().connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_name": is_no_partition}
        context = MigrationContext.configure(connection, opts=options)
        assert [found for found in compare_metadata(context, metadata) if not is_sequence(found)] == []


def is_sequence(difference: Any) -> bool:
    """Whether it is a column numbered by a sequence: Alembic compares the next number with the one after it."""
    return isinstance(difference, list) and difference[0][0] == "modify_default" and difference[0][3] == "position"


def is_no_partition(name: str | None, _type: str, _parents: object) -> bool:
    return not (name or "").startswith("outbox_2") and name != "outbox_other"


def test_migrations_started_at_once_do_no_harm(own: Own, tmp_path: Path) -> None:
    own("DATABASE_URL", *servers.postgresql(tmp_path, "password"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: migrate(), range(4)))
    with transaction() as connection:
        applied = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    assert applied == ScriptDirectory(str(MIGRATIONS)).get_heads()
    assert len(applied) == 1


def test_others_go_on_while_a_migration_waits_for_a_long_transaction(
    own_database: Process, newer: Callable[[str], Path]
) -> None:
    def is_read() -> bool:
        try:
            with transaction() as other:
                return other.execute(text("SELECT count(*) FROM account")).one() == (0,)
        except ServiceUnavailable:
            return False

    with transaction() as long:
        long.execute(text("SELECT FROM account"))
        process_id = long.scalar(text("SELECT pg_backend_pid()"))
        process = start(newer("ALTER TABLE account ADD COLUMN newer text"))
        wait_for(lambda: somebody_waits_for(long))
        wait_for(is_read)
        assert process.stdout
        said = wait_for(lambda: next((line for line in process.stdout or () if '"waiting"' in line), ""))
    reason = json.loads(said)["reason"]
    assert "canceling statement due to lock timeout (55P03)" in reason
    assert f"process {process_id} (aegis, idle in transaction) has held account for" in reason
    said, _ = process.communicate(timeout=60)
    assert json.loads(said.splitlines()[-1])["schema"] == "newer"
    assert process.returncode == 0
    with transaction() as connection:
        connection.execute(text("SELECT newer FROM account"))


def test_a_migration_that_gives_up_says_who_is_in_its_way(own_database: Process, newer: Callable[[str], Path]) -> None:
    tree = newer("ALTER TABLE account ADD COLUMN newer text")
    with transaction() as long:
        long.execute(text("SELECT FROM account"))
        process_id = long.scalar(text("SELECT pg_backend_pid()"))
        said = refused(start(tree, "-c", WITHOUT_PATIENCE), status=os.EX_TEMPFAIL)
    assert said.startswith("the migration gave up: canceling statement due to lock timeout (55P03)\n")
    assert f"to end it: SELECT pg_terminate_backend({process_id})\n" in said
    assert "in: ALTER TABLE account ADD COLUMN newer text\n" in said


def test_a_migration_that_fails_says_why_in_words_and_changes_nothing(
    own_database: Process, newer: Callable[[str], Path]
) -> None:
    said = refused(start(newer("CREATE TABLE newer (); ALTER TABLE nobody ADD COLUMN newer text")))
    assert said.startswith('the migration failed: relation "nobody" does not exist (42P01)\n')
    with transaction() as connection:
        assert connection.scalar(text("SELECT to_regclass('newer')")) is None


def test_the_release_before_refuses_to_migrate_what_a_newer_one_has_migrated(
    own_database: Process, newer: Callable[[str], Path]
) -> None:
    process = start(newer("CREATE TABLE newer ()"))
    process.communicate(timeout=60)
    assert process.returncode == 0
    said = refused(start())
    assert "Can't locate revision identified by 'newer'" in said
    assert "A newer release has migrated it." in said


def test_addresses_that_were_stored_before_they_were_folded_are_found(own_database: Process) -> None:
    verified, unverified = "κωστασ@example.com", "κωστας@example.com"
    stored = ["straße@example.com", unverified, verified, "straße@faß.com", "\u017fam@example.com"]
    with engine().begin() as connection:
        # What the migrations from 0009 on have added.
        connection.execute(text("DROP FUNCTION record_audit CASCADE"))
        connection.execute(text("DROP FUNCTION add_outbox_day, drop_outbox_day, replication_lag"))
        connection.execute(text("DROP INDEX account_folded_name_prefix"))
        connection.execute(text("DROP TABLE former_email"))
        connection.execute(text("ALTER TABLE passkey DROP COLUMN backup_eligible"))
        connection.execute(text("ALTER TABLE business DROP COLUMN holds_number"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0008'"))
        for email in stored:
            row = {"id": uuid.uuid4(), "email": email, "verified": email == verified}
            connection.execute(
                text("""
                INSERT INTO account (id, email, canonical_email, new_canonical_email, locale, status, email_verified_at)
                VALUES (:id, :email, :email, :email, 'ko', 'active', CASE WHEN :verified THEN now() END)
                """),
                row,
            )
    migrate()
    with transaction() as connection:
        rows = connection.execute(text("SELECT email, canonical_email, new_canonical_email FROM account")).all()
    assert {row.email: row.canonical_email for row in rows} == {
        "straße@example.com": "strasse@example.com",
        verified: verified,
        unverified: unverified,  # two accounts stay two
        "straße@faß.com": "strasse@faß.com",
        "\u017fam@example.com": "\u017fam@example.com",  # of no other address than its own
    }
    assert {row.new_canonical_email for row in rows} >= {"strasse@faß.com", "κωστασ@example.com"}


def test_a_migration_waits_for_a_role_that_it_may_not_make(own: Own, tmp_path: Path) -> None:
    process, url = servers.postgresql(tmp_path, "password")
    servers.run_alone(tmp_path / "postgresql", "ALTER ROLE aegis NOCREATEROLE;\n\n")
    own("DATABASE_URL", process, url)
    logins = {"OWNER_DATABASE_URL": url, "DATABASE_URL": servers.functions_url(url, "password")}
    said = refused(start(ROOT, "-c", WITHOUT_PATIENCE, **logins), status=os.EX_TEMPFAIL)
    assert said.startswith("the migration gave up: the role aegis_functions of the functions does not exist yet\n")


def test_a_migration_says_that_it_waits_for_another(own_database: Process) -> None:
    with transaction() as other:
        other.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        process = start()
        said = wait_for(lambda: next((line for line in process.stdout or () if "waiting" in line), ""))
    assert json.loads(said)["message"] == "waiting for another migration to end"
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_migration_without_a_database_names_it_and_not_the_password() -> None:
    port = free_port()
    url = f"postgresql://aegis:secret-password@{LOOPBACK}:{port}/aegis"
    said = refused(start(ROOT, "-c", WITHOUT_PATIENCE, OWNER_DATABASE_URL=url), status=os.EX_TEMPFAIL)
    assert said.startswith("the migration gave up: the database is unreachable (")
    assert str(port) in said
    assert "secret" not in said


def test_of_accounts_that_have_verified_one_number_the_first_holds_it(own_database: Process) -> None:
    before = ScriptDirectory(str(MIGRATIONS)).get_revision("0013").down_revision
    with engine().begin() as connection:
        connection.execute(text("DROP FUNCTION record_audit CASCADE"))
        connection.execute(text("ALTER TABLE business DROP COLUMN holds_number"))
        connection.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})
        for day, status in enumerate(["withdrawn", "active", "active"], 1):
            row = {"id": uuid.uuid4(), "email": f"{day}@example.com", "status": status, "day": day}
            connection.execute(
                text("""
                INSERT INTO account (id, email, canonical_email, locale, status)
                VALUES (:id, :email, :email, 'ko', :status)
                """),
                row,
            )
            connection.execute(
                text("""
                INSERT INTO business (account_id, number, opened_on, representative, status, submitted_at)
                VALUES (:id, '2010100014', '2019-03-04', '김민준', 'verified', make_date(2026, 1, :day))
                """),
                row,
            )
    migrate()
    with transaction() as connection:
        held = text("""
            SELECT email, business.status, holds_number FROM business JOIN account ON id = account_id ORDER BY email
        """)
        assert connection.execute(held).all() == [
            ("1@example.com", "verified", False),
            ("2@example.com", "verified", True),
            ("3@example.com", "verified", False),
        ]
