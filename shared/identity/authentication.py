"""Authentication of callers: the access token, and its session, which may have ended since the token was issued."""

from contextvars import ContextVar
from uuid import UUID

from shared.identity import access_tokens
from shared.identity.access_tokens import Caller, InvalidAccessToken
from shared.postgresql import own_writes
from shared.redis import cache
from shared.runtime.problems import Unauthenticated
from shared.runtime.settings import Dependency

USES: frozenset[Dependency] = frozenset({"access_tokens", "database", "cache"})

_ACTIVE = b"active"
_ACTIVE_SECONDS = 60
_ENDED = b"ended"
_ENDED_SECONDS = access_tokens.LIFETIME_SECONDS + access_tokens.CLOCK_SKEW_SECONDS

takes_strongest_factor: ContextVar[bool] = ContextVar("takes_strongest_factor", default=False)
"""Whether the current request requires the strongest factor of the account, which `changes.change` then checks."""


def caller_of(authorization: str) -> Caller:
    """Return the caller named by an Authorization header. `has_session` checks their session.

    Raises:
        Unauthenticated: the token is missing or invalid.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    try:
        return access_tokens.verify(token.lstrip(" "))  # 1*SP (RFC 6750, 2.1)
    except InvalidAccessToken:
        raise Unauthenticated from None


def state_key(user_id: UUID, session_id: UUID) -> str:
    """Return the cache key of a session's state."""
    return cache.key(user_id, f"session:{session_id}")


def has_session(caller: Caller, state: bytes | None) -> bool:
    """Return whether the caller's session is active.

    Args:
        state: the cached value of `state_key`; if None, the database decides.
    """
    if state is None and _is_active_in_database(caller):
        state_put = cache.if_absent(state_key(caller.user_id, caller.session_id), _ACTIVE, seconds=_ACTIVE_SECONDS)
        cache.attempt(state_put, *own_writes.commands(caller.user_id))
        return True
    return state == _ACTIVE


def _is_active_in_database(caller: Caller) -> bool:
    # Imported only on a miss: a cached read does not need the database.
    from shared.identity.live_sessions import is_active

    return is_active(caller)


def refuse_tokens_of(user_id: UUID, *session_ids: UUID) -> None:
    """Reject the access tokens of sessions until they expire. `sessions` calls this for each session it ends."""
    cache.put(*(state_key(user_id, session_id) for session_id in session_ids), value=_ENDED, seconds=_ENDED_SECONDS)
