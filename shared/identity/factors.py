"""The additional factors of an account: which it has, and which a session must have passed."""

from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, exists, or_, select

from shared.identity.access_tokens import MULTI_FACTOR, PASSKEY, Caller
from shared.postgresql.pool import prepared
from shared.postgresql.tables import passkey, totp
from shared.runtime.problems import Problem, ReauthenticationRequired


class LastFactor(Problem):
    status = 409
    title = "This is the last factor of an account with a role"
    detail = "Nothing was changed. Set up another factor first, or have an administrator remove the role."


def has_app(account_id: Any) -> ColumnElement[bool]:
    """Return the condition that an account has a confirmed authenticator app."""
    return exists().where(totp.c.account_id == account_id, totp.c.confirmed_at.is_not(None))


def has_passkey(account_id: Any) -> ColumnElement[bool]:
    """Return the condition that an account has a passkey."""
    return exists().where(passkey.c.account_id == account_id)


def has_any(account_id: Any) -> ColumnElement[bool]:
    """Return the condition that an account has any factor in addition to its password."""
    return or_(has_app(account_id), has_passkey(account_id))


_user_id: BindParameter[Any] = bindparam("user_id")
_FACTORS = prepared(select(has_passkey(_user_id).label("has_passkey"), has_app(_user_id).label("has_app")))


def require_strongest(connection: Connection, caller: Caller) -> None:
    """Ensure that a session has passed the strongest factor of its account: a passkey, else an authenticator app.

    Raises:
        ReauthenticationRequired: the account has a stronger factor than the session has passed.
    """
    if PASSKEY in caller.amr:
        return
    found = connection.execute(_FACTORS, {"user_id": caller.user_id}).one()
    if found.has_passkey:
        raise ReauthenticationRequired("passkey-missing", "The account has a passkey. Log in with it to do this.")
    if found.has_app and MULTI_FACTOR not in caller.amr:
        raise ReauthenticationRequired(
            "second-factor-missing", "The account has an authenticator app. Log in with a code from it to do this."
        )


def require_one(connection: Connection, caller: Caller) -> None:
    """Ensure that a caller with a role still has a factor after one was removed.

    Raises:
        LastFactor
    """
    if caller.roles and not connection.scalar(select(has_any(caller.user_id))):
        raise LastFactor
