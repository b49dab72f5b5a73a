"""Withdrawal: the account of a user who left is kept for some days, in which logging in restores it."""

from datetime import timedelta

from sqlalchemy import ColumnElement, Interval, and_, bindparam, func

from shared.postgresql.tables import account
from shared.runtime.settings import settings


def is_over() -> ColumnElement[bool]:
    """The condition that those days of an account are over, so that it is purged and never restored."""
    days = bindparam("withdrawal_days", callable_=lambda: timedelta(days=settings().withdrawal_days), type_=Interval)
    return and_(account.c.withdrawn_at.is_not(None), account.c.withdrawn_at <= func.now() - days)
