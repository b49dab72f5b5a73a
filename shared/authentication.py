"""Who calls: the access token, and the session behind it, which may have ended since the token was issued."""

import functools
from typing import TYPE_CHECKING, Any
from uuid import UUID

from shared import access_tokens, cache, own_writes
from shared.access_tokens import MULTI_FACTOR, PASSKEY, Caller, InvalidAccessToken
from shared.problems import ReauthenticationRequired, Unauthenticated
from shared.settings import Dependency

if TYPE_CHECKING:
    from sqlalchemy import Row, Select

USES: frozenset[Dependency] = frozenset({"access_tokens", "database", "cache"})

_ACTIVE = b"active"
_ACTIVE_SECONDS = 60
_ENDED = b"ended"
_ENDED_SECONDS = access_tokens.LIFETIME_SECONDS + access_tokens.CLOCK_SKEW_SECONDS


def caller_of(authorization: str) -> Caller:
    """The caller named by an Authorization header; whether their session goes on is asked by `has_session`.

    Raises:
        Unauthenticated: no token, or not a valid one.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    try:
        return access_tokens.verify(token.lstrip(" "))  # 1*SP (RFC 6750, 2.1)
    except InvalidAccessToken:
        raise Unauthenticated from None


def state_key(user_id: UUID, session_id: UUID) -> str:
    """The key of the cache under which the state of a session stands."""
    return cache.key(user_id, f"session:{session_id}")


def has_session(caller: Caller, state: bytes | None) -> bool:
    """Whether the caller's session goes on.

    Args:
        state: what the cache has under `state_key`; the database is asked where that is nothing.
    """
    if state is None and _is_active_in_database(caller):
        state_put = cache.if_absent(state_key(caller.user_id, caller.session_id), _ACTIVE, seconds=_ACTIVE_SECONDS)
        cache.attempt(state_put, *own_writes.commands(caller.user_id))
        return True
    return state == _ACTIVE


def refuse_tokens_of(user_id: UUID, *session_ids: UUID) -> None:
    """After sessions of a user have ended: refuses their access tokens from now on, as long as they would live."""
    cache.put(*(state_key(user_id, session_id) for session_id in session_ids), value=_ENDED, seconds=_ENDED_SECONDS)


def require_strongest_factor(caller: Caller) -> None:
    """Makes sure that a session has passed the strongest factor of its account: a passkey, else an authenticator app.

    Raises:
        ReauthenticationRequired: the account has a stronger one than the session has passed.
    """
    if PASSKEY in caller.amr:
        return
    factors = _factors_of(caller.user_id)
    if factors.has_passkey:
        raise ReauthenticationRequired("passkey-missing", "The account has a passkey: log in with it for this.")
    if factors.has_app and MULTI_FACTOR not in caller.amr:
        raise ReauthenticationRequired(
            "second-factor-missing", "The account has an authenticator app: log in with a code of it for this."
        )


def _factors_of(user_id: UUID) -> "Row[Any]":
    """Whether an account has a passkey, and an app; never of the replica, which may not know it yet."""
    # Imported when it is asked: a read of one's own profile never meets the database.
    from shared.database import transaction

    with transaction() as connection:
        return connection.execute(_factors(), {"user_id": user_id}).one()


def _is_active_in_database(caller: Caller) -> bool:
    # Imported on a miss: a warm read never meets the database.
    from shared.database import transaction

    with transaction() as connection:
        parameters = {"session_id": caller.session_id, "user_id": caller.user_id}
        return connection.execute(_live_session(), parameters).first() is not None


@functools.cache
def _live_session() -> "Select[tuple[UUID]]":
    from sqlalchemy import bindparam, select

    from shared import sessions
    from shared.database import prepared
    from shared.tables import account, session

    return prepared(
        select(session.c.id)
        .join(account)
        .where(
            session.c.id == bindparam("session_id"),
            session.c.account_id == bindparam("user_id"),
            sessions.is_live(),
            account.c.status == "active",
        )
    )


@functools.cache
def _factors() -> "Select[Any]":
    from sqlalchemy import BindParameter, bindparam, exists, select

    from shared.database import prepared
    from shared.tables import passkey, totp

    user_id: BindParameter[UUID] = bindparam("user_id")
    columns: list[Any] = [
        exists().where(passkey.c.account_id == user_id).label("has_passkey"),
        exists().where(totp.c.account_id == user_id, totp.c.confirmed_at.is_not(None)).label("has_app"),
    ]
    return prepared(select(*columns))
