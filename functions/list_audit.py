"""Read the audit trail of a user, for administrators."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from typing_extensions import TypedDict

from shared.framework import pages
from shared.framework.http_function import http_function
from shared.framework.pages import PageQuery
from shared.http.request import Reply
from shared.identity.access_tokens import Caller
from shared.postgresql.replica import read
from shared.postgresql.tables import audit
from shared.text.formats import TimeText, UuidText


class AuditEntry(TypedDict):
    """An event. `data` contains ids, but no personal data."""

    id: UuidText
    type: str
    occurred_at: TimeText
    request_id: str
    data: dict[str, Any]


class AuditPage(TypedDict):
    entries: list[AuditEntry]


@http_function("GET", "/api/v1/users/{user_id}/audit", role="admin", uses=["encryption"], may_lag=True)
def list_audit(user_id: UUID, query: PageQuery, caller: Caller) -> Reply[AuditPage]:
    """Read the audit trail of a user.

    All events about the user, newest first. The trail remains after the account is purged, and is empty for an unknown
    id. The Link header points to the next page, if there is one (RFC 8288, rel="next").
    """
    rows = read(lambda connection: connection.execute(_trail(user_id, query)).all())
    page, link = pages.split(rows, f"/api/v1/users/{user_id}/audit", query)
    entries = [
        AuditEntry(
            id=str(row.id),
            type=row.type,
            occurred_at=row.occurred_at.isoformat(),
            request_id=row.request_id,
            data=row.data,
        )
        for row in page
    ]
    return Reply(AuditPage(entries=entries), link)


def _trail(user_id: UUID, query: PageQuery) -> Select[Any]:
    """Select one row more than the page has, to see whether there is a next page."""
    entries = select(audit.c.event_id.label("id"), *audit.c["type", "occurred_at", "request_id", "data"])
    wanted = entries.where(audit.c.account_id == user_id).order_by(audit.c.event_id.desc()).limit(query.limit + 1)
    return wanted.where(audit.c.event_id < query.cursor) if query.cursor else wanted
