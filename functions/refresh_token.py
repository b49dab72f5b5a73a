"""Exchange a refresh token for a new pair of tokens."""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, update

from shared import authentication, sessions
from shared.access_tokens import Caller
from shared.database import change_together, transaction
from shared.events import RefreshTokenReused, announce
from shared.fields import OpaqueToken, RequestBody
from shared.http_function import http_function
from shared.problems import Problem
from shared.sessions import TokenPair
from shared.tables import account, session
from shared.tables import refresh_token as tokens

GRACE = timedelta(seconds=10)
"""A token may be sent again for so long, by a client that lost the answer; it gets the same successor."""


class Refresh(RequestBody):
    refresh_token: OpaqueToken


class InvalidRefreshToken(Problem):
    status = 401
    title = "The refresh token is not valid"
    detail = "It is unknown, was used before, or its session has ended. Log in again."
    authenticate = "Bearer"


@http_function(
    "POST",
    "/api/v1/users/token/refresh",
    uses=["access_tokens", "refresh_tokens"],
    problems=[InvalidRefreshToken],
)
def refresh_token(body: Refresh) -> TokenPair:
    """Refresh the tokens.

    Each refresh token is good for one refresh. Sent again within ten seconds, and before its successor was
    used, it yields the same successor. Any other second use ends the session (RFC 9700, 4.14.2), since one of
    the two who hold the token must have stolen it.
    """
    token = body.refresh_token.get_secret_value()
    successor = sessions.successor(token)
    with transaction() as connection:
        found = _lock(connection, token)
        if found is None:
            raise InvalidRefreshToken
        caller = Caller(
            user_id=found.account_id,
            session_id=found.session_id,
            roles=tuple(found.roles),
            amr=tuple(found.amr),
            authenticated_at=int(found.authenticated_at.timestamp()),
        )
        reused = found.used_at is not None and not (found.in_grace and _is_unused(connection, successor))
        if reused:
            sessions.end(connection, caller.user_id, caller.session_id)
            announce(connection, RefreshTokenReused(user_id=caller.user_id, session_id=caller.session_id))
        elif found.used_at is None:
            change_together(
                connection,
                update(tokens).where(_is(token)).values(used_at=func.now()),
                update(session).where(session.c.id == caller.session_id).values(last_used_at=func.now()),
                sessions.new_refresh_token(caller.session_id, successor),
            )
    if reused:
        authentication.refuse_tokens_of(caller.user_id, caller.session_id)
        raise InvalidRefreshToken
    return sessions.token_pair(caller, successor)


def _is(token: str) -> ColumnElement[bool]:
    return tokens.c.token_hash == sessions.hash_refresh_token(token)


def _lock(connection: Connection, token: str) -> Row[Any] | None:
    """The token and its live session, locked: of requests with one token, one rotates it and the others see that."""
    query = (
        select(
            tokens.c.session_id,
            tokens.c.used_at,
            (tokens.c.used_at > func.clock_timestamp() - GRACE).label("in_grace"),
            session.c.account_id,
            session.c.amr,
            session.c.authenticated_at,
            account.c.roles,
        )
        .join(session, session.c.id == tokens.c.session_id)
        .join(account, account.c.id == session.c.account_id)
        .where(_is(token), sessions.is_live(), account.c.status == "active")
        .with_for_update(of=[tokens, session])
    )
    return connection.execute(query).first()


def _is_unused(connection: Connection, token: str) -> bool:
    return (
        connection.execute(select(tokens.c.session_id).where(_is(token), tokens.c.used_at.is_(None))).first()
        is not None
    )
