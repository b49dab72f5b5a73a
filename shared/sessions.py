"""Sessions: each log-in starts one, refresh tokens carry it on, and it ends for good at once."""

import base64
import hashlib
import hmac
import secrets
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, func, insert, update
from typing_extensions import TypedDict
from uuid_utils.compat import uuid7

from shared import access_tokens
from shared.access_tokens import Caller
from shared.settings import settings
from shared.tables import refresh_token, session

LIFETIME = timedelta(days=30)
"""From log-in; a refresh does not extend it."""


class TokenPair(TypedDict):
    """An access token response (RFC 6749, 5.1)."""

    access_token: str
    refresh_token: str
    token_type: str
    expires_in: int


def token_pair(caller: Caller, refresh: str) -> TokenPair:
    return TokenPair(
        access_token=access_tokens.issue(caller),
        refresh_token=refresh,
        token_type="Bearer",  # noqa: S106
        expires_in=access_tokens.LIFETIME_SECONDS,
    )


def start(connection: Connection, user_id: UUID) -> tuple[Caller, str]:
    """A new session of a user: the caller that they are in it, and its first refresh token."""
    caller = Caller(user_id, uuid7())
    connection.execute(
        insert(session).values(id=caller.session_id, account_id=user_id, expires_at=func.now() + LIFETIME)
    )
    token = _encode(secrets.token_bytes(32))
    store_refresh_token(connection, caller.session_id, token)
    return caller, token


def end(connection: Connection, session_id: UUID) -> None:
    """Ends a session. After the commit, tell `authentication.forget`."""
    connection.execute(
        update(session).where(session.c.id == session_id, session.c.ended_at.is_(None)).values(ended_at=func.now())
    )


def store_refresh_token(connection: Connection, session_id: UUID, token: str) -> None:
    connection.execute(insert(refresh_token).values(token_hash=hash_refresh_token(token), session_id=session_id))


def hash_refresh_token(token: str) -> bytes:
    """What is stored of a refresh token: its HMAC-SHA-256 under JWT_REFRESH_SECRET_KEY."""
    return hmac.digest(settings().refresh_key, b"stored:" + token.encode(), hashlib.sha256)


def successor(token: str) -> str:
    """The refresh token that follows this one: the same one each time, known only to who holds this one and our key."""
    return _encode(hmac.digest(settings().refresh_key, b"successor:" + token.encode(), hashlib.sha256))


def _encode(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()
