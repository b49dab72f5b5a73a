"""Ensures that at least one administrator can log in with a second factor."""

from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, exists, func, literal, select, text

from shared.identity.factors import has_any
from shared.postgresql.tables import account
from shared.runtime.problems import Problem

ADMIN: Literal["admin"] = "admin"

_LEAVING = 7_105_141_302
"""PostgreSQL advisory lock for removing an administrator; taken after the lock of their account."""


class LastAdministrator(Problem):
    status = 409
    title = "This is the last administrator"
    detail = "Nothing was changed. There must first be another administrator with a second factor."


def require_another(connection: Connection, user_id: UUID) -> None:
    """Ensure that there is another active administrator with a second factor before this one leaves.

    Administrators leave one at a time. When one suspends another or removes their factors, both accounts are locked, so
    the first one stays. Call this with the account locked.

    Raises:
        LastAdministrator
    """
    another = exists().where(
        account.c.id != user_id,
        account.c.status == "active",
        # Use the partial index account_with_roles, which has only the few accounts with roles.
        account.c.roles != text("'{}'"),
        literal(ADMIN) == account.c.roles.any_(),
        has_any(account.c.id),
    )
    connection.execute(select(func.pg_advisory_xact_lock(_LEAVING)))
    if not connection.scalar(select(another)):
        raise LastAdministrator
