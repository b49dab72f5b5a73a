"""Users as administrators see them."""

from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Row, Select, func, select
from typing_extensions import TypedDict

from shared.http.request import etag, json_bytes
from shared.identity.live_sessions import is_live
from shared.postgresql.tables import account, business, passkey, session, totp
from shared.text.formats import DateText, TimeText, UuidText
from shared.users.profiles import BusinessState, business_state

Status = Literal["pending", "active", "suspended", "withdrawn"]


class _User(TypedDict):
    id: UuidText
    email: str
    name: str | None
    phone: str | None
    status: Status
    roles: list[str]
    locale: Literal["ko", "en"]
    created_at: TimeText
    withdrawn_at: TimeText | None


class ListedUser(_User):
    """A user in a list."""

    business: BusinessState | None


class BusinessRecord(BusinessState):
    """A business registration in full."""

    opened_on: DateText
    representative: str
    submitted_at: TimeText
    checked_at: TimeText | None


class UserDetails(_User):
    """A user in full, without secrets."""

    email_verified_at: TimeText | None
    second_factor: bool
    passkeys: int
    sessions: int
    business: BusinessRecord | None


def select_listed() -> Select[Any]:
    """Select all users with their businesses; `listed` converts a row."""
    return select(
        *account.c["id", "email", "name", "phone", "status", "roles", "locale", "created_at", "withdrawn_at"],
        *(business.c[name].label(f"business_{name}") for name in ("number", "status", "reason")),
    ).select_from(account.outerjoin(business))


def listed(row: Row[Any]) -> ListedUser:
    return ListedUser(
        **_common(row),
        business=business_state(row.business_number, row.business_status, row.business_reason),
    )


def read(connection: Connection, user_id: UUID) -> UserDetails | None:
    """Return a user in full, or None if there is no such account."""
    passkeys = select(func.count()).where(passkey.c.account_id == account.c.id)
    live_sessions = select(func.count()).where(session.c.account_id == account.c.id, is_live())
    query = (
        select_listed()
        .add_columns(
            account.c.email_verified_at,
            totp.c.confirmed_at,
            passkeys.scalar_subquery().label("passkeys"),
            live_sessions.scalar_subquery().label("sessions"),
            *business.c["opened_on", "representative", "submitted_at", "checked_at"],
        )
        .outerjoin(totp, totp.c.account_id == account.c.id)
        .where(account.c.id == user_id)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return UserDetails(
        **_common(row),
        email_verified_at=_text(row.email_verified_at),
        second_factor=row.confirmed_at is not None,
        passkeys=row.passkeys,
        sessions=row.sessions,
        business=BusinessRecord(
            number=row.business_number,
            status=row.business_status,
            reason=row.business_reason,
            opened_on=row.opened_on.isoformat(),
            representative=row.representative,
            submitted_at=row.submitted_at.isoformat(),
            checked_at=_text(row.checked_at),
        )
        if row.business_number
        else None,
    )


def version(user: UserDetails) -> str:
    """Return the ETag of a user, without the number of sessions, which changes with each log-in."""
    return etag(json_bytes({name: value for name, value in user.items() if name != "sessions"}))


def _common(row: Row[Any]) -> _User:
    return _User(
        id=str(row.id),
        email=row.email,
        name=row.name,
        phone=row.phone,
        status=row.status,
        roles=row.roles,
        locale=row.locale,
        created_at=row.created_at.isoformat(),
        withdrawn_at=_text(row.withdrawn_at),
    )


def _text(time: Any) -> str | None:
    return time.isoformat() if time else None
