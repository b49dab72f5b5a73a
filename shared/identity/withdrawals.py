"""Withdrawal: the account of a user who left is kept for some days, during which logging in restores it."""

from datetime import timedelta

from sqlalchemy import ColumnElement, Interval, and_, bindparam, func

from shared.postgresql.tables import account
from shared.runtime.settings import settings


def is_over() -> ColumnElement[bool]:
    """Return the condition that those days are over, so that the account is purged and can no longer be restored."""
    days = bindparam("withdrawal_days", callable_=lambda: timedelta(days=settings().withdrawal_days), type_=Interval)
    return and_(account.c.withdrawn_at.is_not(None), account.c.withdrawn_at <= func.now() - days)
