"""Keeps at least one administrator who can log in with a second factor."""

from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, exists, func, literal, select, text

from shared.identity.factors import has_any
from shared.postgresql.tables import account
from shared.runtime.problems import Problem

ADMIN: Literal["admin"] = "admin"

_LEAVING = 7_105_141_302
"""PostgreSQL's advisory lock of an administrator who leaves; taken after that of their account."""


class LastAdministrator(Problem):
    status = 409
    title = "This is the last administrator"
    detail = "Nothing was changed. Make another administrator first, who has set up a second factor."


def require_another(connection: Connection, user_id: UUID) -> None:
    """Makes sure that there is an active administrator with a second factor beside this one, who is about to leave.

    Administrators who leave take turns. One who suspends or disarms another stays: both accounts are locked for that.
    Call it with the account locked.

    Raises:
        LastAdministrator
    """
    another = exists().where(
        account.c.id != user_id,
        account.c.status == "active",
        # The partial index account_with_roles has the few accounts that there are with any.
        account.c.roles != text("'{}'"),
        literal(ADMIN) == account.c.roles.any_(),
        has_any(account.c.id),
    )
    connection.execute(select(func.pg_advisory_xact_lock(_LEAVING)))
    if not connection.scalar(select(another)):
        raise LastAdministrator
