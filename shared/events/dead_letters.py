"""Events that could not be delivered: the table dead_letter."""

from sqlalchemy import Connection, func, select

from shared.postgresql.tables import dead_letter

is_open = dead_letter.c.retried_at.is_(None)
"""Of those that wait for an operator to retry or drop them."""


def count(connection: Connection) -> dict[str, int]:
    """How many are open of each function that has any."""
    query = select(dead_letter.c.function, func.count().label("number")).where(is_open).group_by(dead_letter.c.function)
    return {row.function: row.number for row in connection.execute(query)}
