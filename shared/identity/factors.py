"""The factors of an account beside its password: which it has, and which a session must have passed."""

from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, exists, or_, select

from shared.identity.access_tokens import MULTI_FACTOR, PASSKEY, Caller
from shared.postgresql.pool import prepared
from shared.postgresql.tables import passkey, totp
from shared.runtime.problems import Problem, ReauthenticationRequired


class LastFactor(Problem):
    status = 409
    title = "This is the last factor of an account with a role"
    detail = "Nothing was changed. Set up another factor first, or let an administrator take the role away."


def has_app(account_id: Any) -> ColumnElement[bool]:
    """The condition that an account has an authenticator app, which was confirmed."""
    return exists().where(totp.c.account_id == account_id, totp.c.confirmed_at.is_not(None))


def has_passkey(account_id: Any) -> ColumnElement[bool]:
    """The condition that an account has a passkey."""
    return exists().where(passkey.c.account_id == account_id)


def has_any(account_id: Any) -> ColumnElement[bool]:
    """The condition that an account has any factor beside its password."""
    return or_(has_app(account_id), has_passkey(account_id))


_user_id: BindParameter[Any] = bindparam("user_id")
_FACTORS = prepared(select(has_passkey(_user_id).label("has_passkey"), has_app(_user_id).label("has_app")))


def require_strongest(connection: Connection, caller: Caller) -> None:
    """Makes sure that a session has passed the strongest factor of its account: a passkey, else an authenticator app.

    Raises:
        ReauthenticationRequired: the account has a stronger one than the session has passed.
    """
    if PASSKEY in caller.amr:
        return
    found = connection.execute(_FACTORS, {"user_id": caller.user_id}).one()
    if found.has_passkey:
        raise ReauthenticationRequired("passkey-missing", "The account has a passkey: log in with it for this.")
    if found.has_app and MULTI_FACTOR not in caller.amr:
        raise ReauthenticationRequired(
            "second-factor-missing", "The account has an authenticator app: log in with a code of it for this."
        )


def require_one(connection: Connection, caller: Caller) -> None:
    """Makes sure, after one was removed, that a caller who holds a role still has a factor.

    Raises:
        LastFactor
    """
    if caller.roles and not connection.scalar(select(has_any(caller.user_id))):
        raise LastFactor
