"""List the caller's open sessions."""

from sqlalchemy import select
from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.identity.live_sessions import is_live
from shared.postgresql.tables import session
from shared.postgresql.transactions import transaction
from shared.text.formats import TimeText, UuidText


class LiveSession(TypedDict):
    id: UuidText
    device: str
    address: str
    methods: list[str]
    created_at: TimeText
    last_used_at: TimeText
    current: bool


class LiveSessions(TypedDict):
    sessions: list[LiveSession]


@http_function("GET", "/api/v1/users/me/sessions")
def list_sessions(caller: Caller) -> LiveSessions:
    """List the caller's open sessions.

    The most recently refreshed session comes first. `device` and `address` are the User-Agent and IP address at log-in,
    `methods` is how the user authenticated (RFC 8176). There are at most 50: the next log-in ends the least recently
    used one. `current` marks the session of this request.
    """
    of_caller = (
        select(session)
        .where(session.c.account_id == caller.user_id, is_live())
        .order_by(session.c.last_used_at.desc(), session.c.id.desc())
    )
    with transaction() as connection:
        rows = connection.execute(of_caller).all()
    return LiveSessions(
        sessions=[
            LiveSession(
                id=str(row.id),
                device=row.device,
                address=row.address,
                methods=row.amr,
                created_at=row.created_at.isoformat(),
                last_used_at=row.last_used_at.isoformat(),
                current=row.id == caller.session_id,
            )
            for row in rows
        ]
    )
