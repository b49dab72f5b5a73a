"""Sessions: a login starts one, refresh tokens continue it, and ending it takes effect immediately."""

import hashlib
import hmac
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, bindparam, func, insert, select, update
from typing_extensions import TypedDict
from uuid_utils.compat import uuid7

from shared.events.outbox import ANNOUNCEMENT, announce, announced
from shared.events.types import LoggedIn, UserRestored
from shared.http.clients import Client
from shared.identity import access_tokens, authentication, known_devices, withdrawals
from shared.identity.access_tokens import Caller
from shared.identity.live_sessions import is_live
from shared.identity.tokens import encode, new_token
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, credential, refresh_token, session
from shared.postgresql.transactions import together
from shared.runtime.settings import required, settings

LIFETIME = timedelta(days=30)
"""Counted from the login; a refresh does not extend it."""
MAX_SESSIONS = 50
MAY_LOG_IN = ("active", "withdrawn")
"""The states in which an account may start a session."""


# Built once, because building a statement takes longer than executing it.
_MAY_LOG_IN: Select[Any] = prepared(
    select(*account.c["id", "status", "roles", "canonical_email"], credential.c.password_hash)
    .outerjoin(credential)
    .where(account.c.id == bindparam("user_id"), account.c.status.in_(MAY_LOG_IN), ~withdrawals.is_over())
    .with_for_update(of=account, key_share=True)
)
NEW_REFRESH_TOKEN = insert(refresh_token).values(token_hash=bindparam("new_hash"), session_id=bindparam("of_session"))
"""For its parameters see `refresh_token_of`."""
_SURPLUS = (
    select(session.c.id)
    .where(session.c.account_id == bindparam("user_id"), is_live())
    .order_by(session.c.last_used_at.desc())
    .offset(MAX_SESSIONS - 1)
)
_STARTED = prepared(
    together(
        insert(session).values(
            id=bindparam("of_session"),
            account_id=bindparam("user_id"),
            expires_at=func.now() + LIFETIME,
            amr=bindparam("by_methods"),
            authenticated_at=bindparam("since"),
            device=bindparam("on_device"),
            address=bindparam("from_address"),
        ),
        NEW_REFRESH_TOKEN,
        ANNOUNCEMENT,
        # Returns the sessions that were ended to make room for this one.
        update(session).where(session.c.id.in_(_SURPLUS)).values(ended_at=func.now()).returning(session.c.id),
    )
)


class TokenPair(TypedDict):
    """An access token response (RFC 6749, 5.1)."""

    access_token: str
    refresh_token: str
    token_type: str
    expires_in: int
    device_token: str
    """For the Device-Token header of later logins from this device; see `known_devices`."""


def token_pair(caller: Caller, refresh: str, found: Row[Any]) -> TokenPair:
    """Return the response to a login or refresh.

    Args:
        found: the account's canonical_email and password_hash.
    """
    return TokenPair(
        access_token=access_tokens.issue(caller),
        refresh_token=refresh,
        token_type="Bearer",  # noqa: S106
        expires_in=access_tokens.LIFETIME_SECONDS,
        device_token=known_devices.new_token(found.canonical_email, found.password_hash),
    )


def log_in(connection: Connection, user_id: UUID, amr: Sequence[str], client: Client) -> TokenPair | None:
    """Start a session for a user who has proved who they are; None for an account that may not have one.

    This restores a withdrawn account, unless its withdrawal period is over. If there are more than 50 live sessions,
    the least recently used one ends.

    Args:
        amr: how they proved who they are (RFC 8176).
        client: the device and address to show for the session.
    """
    found = lock_account(connection, user_id)
    return found and start(connection, found, amr, client)


def start(connection: Connection, found: Row[Any], amr: Sequence[str], client: Client) -> TokenPair:
    """Like `log_in`, for an account that `lock_account` returned."""
    user_id, now = found.id, int(time.time())
    if found.status == "withdrawn":
        connection.execute(update(account).where(account.c.id == user_id).values(status="active", withdrawn_at=None))
        announce(connection, UserRestored(user_id=user_id))
    caller = Caller(user_id=user_id, session_id=uuid7(), roles=tuple(found.roles), amr=tuple(amr), authenticated_at=now)
    token = new_token()
    parameters = {
        "user_id": user_id,
        "by_methods": list(amr),
        "since": datetime.fromtimestamp(now, UTC),
        "on_device": client.device,
        "from_address": client.address,
        **refresh_token_of(caller.session_id, token),
        **announced(LoggedIn(user_id=user_id, session_id=caller.session_id, amr=list(amr))),
    }
    surplus = connection.scalars(_STARTED, parameters).all()
    authentication.refuse_tokens_of(user_id, *surplus)
    return token_pair(caller, token, found)


def lock_account(connection: Connection, user_id: UUID) -> Row[Any] | None:
    """Lock an account that may log in, and return the columns that `start` needs; None if it may not log in.

    A concurrent suspension, or change of the password or factors, waits for the lock and then also ends the session
    that is about to start.
    """
    return connection.execute(_MAY_LOG_IN, {"user_id": user_id}).first()


def end(connection: Connection, user_id: UUID, session_id: UUID) -> bool:
    """End a session; False if it is not a live session of this user. Its access tokens are refused after the commit."""
    this = (session.c.id == session_id, session.c.account_id == user_id, is_live())
    if not connection.execute(update(session).where(*this).values(ended_at=func.now())).rowcount:
        return False
    authentication.refuse_tokens_of(user_id, session_id)
    return True


def end_all(connection: Connection, user_id: UUID, *, but: UUID | None = None) -> Sequence[UUID]:
    """End all sessions of a user, or all but one. Their access tokens are refused after the commit.

    Call this with the account locked, so that it also ends a session that is about to start.
    """
    these = [session.c.account_id == user_id, session.c.ended_at.is_(None)]
    if but:
        these.append(session.c.id != but)
    ended = connection.scalars(update(session).where(*these).values(ended_at=func.now()).returning(session.c.id)).all()
    authentication.refuse_tokens_of(user_id, *ended)
    return ended


def refresh_token_of(session_id: UUID, token: str) -> dict[str, Any]:
    """Return the parameters of `NEW_REFRESH_TOKEN`."""
    return {"new_hash": hash_refresh_token(token), "of_session": session_id}


def hash_refresh_token(token: str) -> bytes:
    """Return the hash to store for a refresh token: its HMAC-SHA-256 under JWT_REFRESH_SECRET_KEY."""
    return hmac.digest(_key(), b"stored:" + token.encode(), hashlib.sha256)


def successor(token: str) -> str:
    """Return the refresh token that follows this one. It is always the same; deriving it requires our key."""
    return encode(hmac.digest(_key(), b"successor:" + token.encode(), hashlib.sha256))


def _key() -> bytes:
    return required(settings().refresh_key, "JWT_REFRESH_SECRET_KEY")
