"""The schema that migrations make."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from knative.local import servers
from shared.database import engine, transaction
from shared.migrate import MIGRATIONS, migrate
from shared.tables import metadata
from tests.servers import Own


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
