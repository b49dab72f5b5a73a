"""Queries for live sessions."""

import functools
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, bindparam, func, select

from shared.identity.access_tokens import Caller
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, session
from shared.postgresql.transactions import transaction

IDLE_LIFETIME = timedelta(days=14)
"""Counted from the last refresh."""


def is_live() -> ColumnElement[bool]:
    """Return the condition that a session has not ended, expired or been idle for too long."""
    return and_(
        session.c.ended_at.is_(None),
        session.c.expires_at > func.now(),
        session.c.last_used_at > func.now() - IDLE_LIFETIME,
    )


def active() -> Select[tuple[UUID]]:
    """Select the session `session_id` of `user_id` if it is live and the account is active."""
    return (
        select(session.c.id)
        .join(account)
        .where(
            session.c.id == bindparam("session_id"),
            session.c.account_id == bindparam("user_id"),
            is_live(),
            account.c.status == "active",
        )
    )


def is_active(caller: Caller) -> bool:
    """Ask the database whether the caller's session is live and their account is active."""
    with transaction() as connection:
        parameters = {"session_id": caller.session_id, "user_id": caller.user_id}
        return connection.execute(_prepared(), parameters).first() is not None


@functools.cache
def _prepared() -> Select[tuple[UUID]]:
    return prepared(active())
