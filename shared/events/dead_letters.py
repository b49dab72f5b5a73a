"""Events that could not be delivered: the table dead_letter."""

from sqlalchemy import Connection, func, select

from shared.postgresql.tables import dead_letter

is_open = dead_letter.c.retried_at.is_(None)
"""The condition for dead letters that an operator has yet to retry or drop."""


def count(connection: Connection) -> dict[str, int]:
    """Count the open dead letters of each function that has any."""
    query = select(dead_letter.c.function, func.count().label("number")).where(is_open).group_by(dead_letter.c.function)
    return {row.function: row.number for row in connection.execute(query)}
