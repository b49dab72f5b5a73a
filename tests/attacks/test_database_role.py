"""What somebody can do with a login to PostgreSQL: that of a function which they have taken over, or the owner's."""

import os

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.postgresql import privileges
from shared.postgresql.pool import unpooled
from shared.postgresql.transactions import sqlstate
from shared.runtime import database_url

INSUFFICIENT_PRIVILEGE = "42501"
INVALID_PASSWORD = "28P01"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit",
        "UPDATE audit SET type = 'forged'",
        "TRUNCATE audit",
        "ALTER TABLE audit DISABLE TRIGGER ALL",
        "ALTER TABLE audit DISABLE TRIGGER refuse_change",
        "DROP TRIGGER refuse_change ON audit",
        "CREATE TRIGGER mine BEFORE INSERT ON audit EXECUTE FUNCTION refuse_change()",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "SET session_replication_role = replica",
        "DROP TABLE audit",
        "ALTER TABLE account ADD COLUMN mine text",
        "CREATE TABLE mine (id int)",
        "TRUNCATE account CASCADE",
        "DELETE FROM outbox",
        "UPDATE outbox SET data = '{}'",
        "INSERT INTO purged_account SELECT id FROM account",
        "UPDATE alembic_version SET version_num = '0001'",
    ],
)
def test_the_login_of_a_function_neither_alters_tables_nor_touches_the_audit_trail(statement: str) -> None:
    assert refusal(statement) == INSUFFICIENT_PRIVILEGE


def test_the_login_of_a_function_cannot_become_the_owner() -> None:
    owner = database_url.parse(os.environ["OWNER_DATABASE_URL"]).user
    assert refusal(f"SET ROLE {owner}") == INSUFFICIENT_PRIVILEGE
    assert refusal(f"SET SESSION AUTHORIZATION {owner}") == INSUFFICIENT_PRIVILEGE
    assert refusal(f"ALTER ROLE {owner} PASSWORD 'mine'") == INSUFFICIENT_PRIVILEGE


@pytest.mark.parametrize("login", ["DATABASE_URL", "OWNER_DATABASE_URL"])
@pytest.mark.parametrize(
    "statement",
    [
        "COPY audit TO PROGRAM 'id'",
        "COPY audit FROM PROGRAM 'id'",
        "COPY audit TO '/tmp/mine'",
        "COPY audit FROM '/etc/passwd'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_read_binary_file('/etc/passwd')",
        "SELECT pg_ls_dir('/etc')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_export(lo_from_bytea(0, 'mine'), '/tmp/mine')",
        "CREATE FUNCTION mine(cstring) RETURNS int LANGUAGE c AS 'libc.so.6', 'system'",
        "CREATE EXTENSION file_fdw",
        "GRANT pg_execute_server_program TO CURRENT_USER",
        "GRANT pg_read_server_files TO CURRENT_USER",
        "CREATE ROLE mine SUPERUSER",
        "ALTER ROLE postgres PASSWORD 'mine'",
        "SET ROLE postgres",
        "SELECT rolpassword FROM pg_authid",
    ],
)
def test_no_login_reaches_the_files_and_programs_of_the_machine(login: str, statement: str) -> None:
    assert refusal(statement, login) == INSUFFICIENT_PRIVILEGE


def test_nobody_logs_in_as_the_superuser() -> None:
    for login in ("DATABASE_URL", "OWNER_DATABASE_URL"):
        url = os.environ[login]
        with unpooled(url).connect() as connection:
            superusers = connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolsuper")).all()
        assert superusers == ["postgres"]
        for guess in (database_url.parse(url).password, "postgres"):
            named = url.replace(url.partition("@")[0], f"postgresql://postgres:{guess}", 1)
            with pytest.raises(DBAPIError) as refused:
                unpooled(named).connect()
            assert sqlstate(refused.value) == INVALID_PASSWORD


def refusal(statement: str, login: str = "DATABASE_URL") -> str:
    """PostgreSQL's code of the refusal; nothing is committed."""
    with unpooled(os.environ[login]).connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.exec_driver_sql(statement)
    return sqlstate(refused.value)


_OUR_TABLES = """
    SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    AND relname <> 'alembic_version' AND relname !~ '^outbox_[0-9]'
"""


def test_the_login_of_a_function_holds_the_privileges_that_are_stated_and_no_other() -> None:
    role = database_url.parse(os.environ["DATABASE_URL"]).user
    of_tables = "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = :role"
    of_columns = """
        SELECT table_name, privilege_type || ' (' || column_name || ')' FROM information_schema.column_privileges
        WHERE grantee = :role AND (table_name, privilege_type) NOT IN (
            SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = :role)
    """
    with unpooled(os.environ["OWNER_DATABASE_URL"]).connect() as connection:
        held = {
            tuple(row) for query in (of_tables, of_columns) for row in connection.execute(text(query), {"role": role})
        }
        tables = connection.scalars(text(_OUR_TABLES)).all()
    assert set(tables) == privileges.TABLES.keys()
    assert held == {(table, one) for table, stated in privileges.TABLES.items() for one in stated.split(", ") if one}
    assert {one for table, one in held if table == "audit"} == {"SELECT", "INSERT"}
