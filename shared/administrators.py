"""Keeps at least one administrator who can log in with a second factor."""

from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, exists, func, literal, or_, select, text

from shared.problems import Problem
from shared.tables import account, passkey, totp

ADMIN: Literal["admin"] = "admin"

_LOCK = 7_105_141_302
"""PostgreSQL's advisory lock for changes that could leave the service without an administrator."""


class LastAdministrator(Problem):
    status = 409
    title = "This is the last administrator"
    detail = "Nothing was changed. Make another administrator first, who has set up a second factor."


def lock(connection: Connection) -> None:
    """Lets nobody else disarm an administrator until the transaction ends; taken before any account is locked."""
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def require_another(connection: Connection, user_id: UUID) -> None:
    """Makes sure, under `lock`, that there is an active administrator with a second factor beside this one.

    Raises:
        LastAdministrator
    """
    has_app = exists().where(totp.c.account_id == account.c.id, totp.c.confirmed_at.is_not(None))
    has_passkey = exists().where(passkey.c.account_id == account.c.id)
    another = exists().where(
        account.c.id != user_id,
        account.c.status == "active",
        # The partial index account_with_roles has the few accounts that there are with any.
        account.c.roles != text("'{}'"),
        literal(ADMIN) == account.c.roles.any_(),
        or_(has_app, has_passkey),
    )
    if not connection.scalar(select(another)):
        raise LastAdministrator
