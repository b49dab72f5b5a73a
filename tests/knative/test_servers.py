"""The servers of `make up`."""

import shutil
from pathlib import Path

from sqlalchemy import text

from knative.local import servers
from shared.postgresql.migrate import migrate
from shared.postgresql.pool import unpooled
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings
from tests.servers import Own, kill


def test_a_database_from_before_gets_an_owner_who_is_no_superuser(own: Own, tmp_path: Path) -> None:
    superuser_owns_all(tmp_path)
    old = own("DATABASE_URL", *servers.postgresql(tmp_path, "password"))
    migrate()
    assert owners() == {"aegis": True}
    kill(old)
    (tmp_path / "postgresql" / servers.OWNED).unlink()

    own("DATABASE_URL", *servers.postgresql(tmp_path, "password"))
    assert owners() == {"aegis": False}
    migrate()
    with transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM account")) == 0
        connection.execute(text("CREATE TABLE made_later (id int)"))


def superuser_owns_all(folder: Path) -> None:
    """A PostgreSQL as releases made it until the owner got a role of its own."""
    password = folder / "password"
    password.write_text("password")
    if shutil.which("setpriv"):
        password.chmod(0o644)
    servers.make_folder(
        folder / "postgresql",
        *("initdb", "--username", "aegis", "--auth", "scram-sha-256", "--pwfile", password, "--encoding", "UTF8"),
    )
    (folder / "postgresql" / servers.OWNED).touch()


def owners() -> dict[str, bool]:
    """Who owns what is ours in the database, and whether that is a superuser."""
    query = """
        SELECT rolname, rolsuper FROM pg_roles WHERE oid IN (
            SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION SELECT typowner FROM pg_type WHERE typnamespace = 'public'::regnamespace
            UNION SELECT datdba FROM pg_database WHERE datname = current_database())
    """
    with unpooled(settings().database_url).connect() as connection:
        return {row.rolname: row.rolsuper for row in connection.execute(text(query))}
