"""Alembic's entry point, which `python -m shared.postgresql.migrate` runs."""

from alembic import context

from shared.postgresql.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
