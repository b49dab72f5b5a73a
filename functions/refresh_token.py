"""Exchange a refresh token for a new pair of tokens."""

from datetime import timedelta

from sqlalchemy import bindparam, func, select, update

from shared.events.outbox import announce
from shared.events.types import RefreshTokenReused
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import sessions
from shared.identity.access_tokens import Caller
from shared.identity.live_sessions import is_live
from shared.identity.sessions import TokenPair
from shared.postgresql import own_writes
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, credential, session
from shared.postgresql.tables import refresh_token as tokens
from shared.postgresql.transactions import together, transaction
from shared.runtime import logs
from shared.runtime.problems import Problem
from shared.text.fields import OpaqueToken, RequestBody

GRACE = timedelta(seconds=10)
"""How long a client that lost the response can send the same token again. It gets the same successor."""

# Built once, because composing a statement takes longer than executing it.
_IS_TOKEN = tokens.c.token_hash == bindparam("hash")
LOCKED = prepared(
    select(
        tokens.c.session_id,
        tokens.c.used_at,
        (tokens.c.used_at > func.clock_timestamp() - GRACE).label("in_grace"),
        session.c.account_id,
        session.c.amr,
        session.c.authenticated_at,
        *account.c["roles", "canonical_email"],
        credential.c.password_hash,
    )
    .join(session, session.c.id == tokens.c.session_id)
    .join(account, account.c.id == session.c.account_id)
    .outerjoin(credential, credential.c.account_id == account.c.id)
    .where(_IS_TOKEN, is_live(), account.c.status == "active")
    .with_for_update(of=[tokens, session])
)
"""The token and its live session, locked: of concurrent requests one rotates the token and the others see that."""
UNUSED = prepared(select(tokens.c.session_id).where(_IS_TOKEN, tokens.c.used_at.is_(None)))
ROTATED = prepared(
    together(
        update(tokens).where(_IS_TOKEN).values(used_at=func.now()),
        update(session).where(session.c.id == bindparam("of_session")).values(last_used_at=func.now()),
        sessions.NEW_REFRESH_TOKEN,
    )
)


class Refresh(RequestBody):
    refresh_token: OpaqueToken


class InvalidRefreshToken(Problem):
    status = 401
    title = "The refresh token is not valid"
    detail = "It is unknown or already used, or its session has ended. Log in again."
    authenticate = "Bearer"


@http_function(
    "POST",
    "/api/v1/users/token/refresh",
    scaling=Scaling("database", max_pods=10),  # the maximum of the guide's HPA (4.7)
    uses=["token_signing", "refresh_tokens"],
    problems=[InvalidRefreshToken],
)
def refresh_token(body: Refresh) -> TokenPair:
    """Refresh the tokens.

    A refresh token can be used once. Sent again within ten seconds, before its successor is used, it returns the same
    successor. Any other reuse ends the session (RFC 9700, 4.14.2), because one of the two clients that hold the token
    must have stolen it.
    """
    token = body.refresh_token.get_secret_value()
    successor = sessions.successor(token)
    with transaction() as connection:
        this = {"hash": sessions.hash_refresh_token(token)}
        found = connection.execute(LOCKED, this).first()
        if found is None:
            raise InvalidRefreshToken
        logs.user_id.set(str(found.account_id))
        caller = Caller(
            user_id=found.account_id,
            session_id=found.session_id,
            roles=tuple(found.roles),
            amr=tuple(found.amr),
            authenticated_at=int(found.authenticated_at.timestamp()),
        )
        next_one = sessions.refresh_token_of(caller.session_id, successor)
        reused = found.used_at is not None and not (
            found.in_grace and connection.execute(UNUSED, {"hash": next_one["new_hash"]}).first()
        )
        if reused:
            sessions.end(connection, caller.user_id, caller.session_id)
            announce(connection, RefreshTokenReused(user_id=caller.user_id, session_id=caller.session_id))
        elif found.used_at is None:
            own_writes.add(caller.user_id)
            connection.execute(ROTATED, this | next_one)
    if reused:
        raise InvalidRefreshToken
    return sessions.token_pair(caller, successor, found)
