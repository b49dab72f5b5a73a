"""Who calls: the access token, and the session behind it, which may have ended since the token was issued."""

from collections.abc import Callable
from uuid import UUID

from shared import access_tokens, cache
from shared.access_tokens import Caller, InvalidAccessToken
from shared.problems import Unauthenticated
from shared.settings import Dependency

USES: frozenset[Dependency] = frozenset({"access_tokens", "database", "cache"})

_ACTIVE = b"active"
_ACTIVE_SECONDS = 60
_ENDED = b"ended"
_ENDED_SECONDS = access_tokens.LIFETIME_SECONDS + access_tokens.CLOCK_SKEW_SECONDS


def authenticate(authorization: str, cached: Callable[[Caller], str] | None) -> tuple[Caller, bytes | None]:
    """The caller named by an Authorization header, and an entry of the cache that the operation wants.

    One round trip to Redis fetches both the state of the session and that entry; the database is asked only
    when Redis does not know the session.

    Raises:
        Unauthenticated: no token, not a valid one, or its session has ended.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    try:
        caller = access_tokens.verify(token)
    except InvalidAccessToken:
        raise Unauthenticated from None

    key = _session_key(caller.user_id, caller.session_id)
    state, *wanted = cache.get(key, *([cached(caller)] if cached else []))
    active = state == _ACTIVE
    if state is None:
        active = _is_active_in_database(caller)
        if active:
            cache.put_if_absent(key, _ACTIVE, seconds=_ACTIVE_SECONDS)
    if not active:
        raise Unauthenticated
    return caller, wanted[0] if wanted else None


def refuse_tokens_of(user_id: UUID, *session_ids: UUID) -> None:
    """After sessions of a user have ended: refuses their access tokens from now on, as long as they would live."""
    cache.put(*(_session_key(user_id, session_id) for session_id in session_ids), value=_ENDED, seconds=_ENDED_SECONDS)


def _session_key(user_id: UUID, session_id: UUID) -> str:
    return cache.key(user_id, f"session:{session_id}")


def _is_active_in_database(caller: Caller) -> bool:
    # Imported on a miss: a warm read never meets the database.
    from sqlalchemy import select

    from shared import sessions
    from shared.database import transaction
    from shared.tables import account, session

    query = (
        select(session.c.id)
        .join(account)
        .where(
            session.c.id == caller.session_id,
            session.c.account_id == caller.user_id,
            sessions.is_live(),
            account.c.status == "active",
        )
    )
    with transaction() as connection:
        return connection.execute(query).first() is not None
