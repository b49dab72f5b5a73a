"""The database privileges of the functions' role. Migrations connect as the owner of the tables instead."""

from pg8000.native import identifier
from sqlalchemy import Connection, text

from shared.postgresql import tables
from shared.runtime.database_url import DatabaseUrl

ALL = "SELECT, INSERT, UPDATE, DELETE"

TABLES = {
    **dict.fromkeys((table.name for table in tables.metadata.sorted_tables), ALL),
    "audit": "SELECT, INSERT",
    "backup": "SELECT",
    "outbox": "SELECT, INSERT, UPDATE (sent_at)",
    "outbox_other": "SELECT, DELETE",
    "purged_account": "",
    "relayed_topic": "SELECT, INSERT, UPDATE",
}
"""By table. Revoke a privilege one release after its last use, because the previous release still needs it."""

OTHERS = (
    "USAGE ON SCHEMA public",
    "USAGE ON SEQUENCE public.outbox_positions",
    "EXECUTE ON FUNCTION public.add_outbox_day(date), public.drop_outbox_day(date), public.replication_lag()",
)

_HOLDS_MORE = """
    SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
        OR pg_has_role(rolname, current_user, 'MEMBER') FROM pg_roles WHERE rolname = :role
"""


class Overprivileged(Exception):
    """The role of the functions has rights that functions must not have."""


class RoleMissing(Exception):
    """The role of the functions does not exist and the owner cannot create it, but CloudNativePG, for example, will."""


def grant(connection: Connection, functions: DatabaseUrl) -> None:
    """Create the role of the functions if it is missing, and grant it only what it needs.

    The password of an existing role is not changed.

    Raises:
        Overprivileged: the role is a superuser, can create roles or databases, or is a member of the owner.
        RoleMissing: the role does not exist yet, and we cannot create it.
    """
    holds_more = connection.scalar(text(_HOLDS_MORE), {"role": functions.user})
    if holds_more:
        raise Overprivileged(f"the role {functions.user} of the functions is a superuser, or has rights of the owner")
    role = identifier(functions.user)
    if holds_more is None:
        if not connection.scalar(text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")):
            raise RoleMissing(f"the role {functions.user} of the functions does not exist yet")
        _create(connection, role, functions.password)
    # Databases created before PostgreSQL 15 let every role create tables.
    connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    connection.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
    for table, granted in TABLES.items():
        if granted:
            connection.exec_driver_sql(f"GRANT {granted} ON public.{identifier(table)} TO {role}")
    for other in OTHERS:
        connection.exec_driver_sql(f"GRANT {other} TO {role}")


def _create(connection: Connection, role: str, password: str) -> None:
    # Another database of the same server may be migrated at the same time.
    connection.exec_driver_sql(f"""
        DO $$ BEGIN
            CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
            PASSWORD '{_verifier(password)}';
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END $$
    """)


def _verifier(password: str) -> str:
    """Return the password as PostgreSQL stores it (RFC 5803), so that no statement log contains it in plain text."""
    from base64 import b64encode

    from scramp import ScramMechanism  # type: ignore[import-untyped]

    salt, stored_key, server_key, count = ScramMechanism("SCRAM-SHA-256").make_auth_info(password)
    parts = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${count}:{parts[0]}${parts[1]}:{parts[2]}"
