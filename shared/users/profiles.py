"""User profiles, and their copies in the cache.

Code that changes a part of a profile calls `refresh` in the same transaction.
"""

import functools
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from typing_extensions import TypedDict

from shared.http.request import json_bytes
from shared.redis import cache
from shared.text.formats import TimeText, UuidText

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

CACHE_SECONDS = 60
CONTENDED_SECONDS = 5
"""Longer than it takes from the commit of a change, or from a read, to caching the profile."""


class BusinessState(TypedDict):
    number: str
    status: Literal["pending", "verified", "rejected", "closed"]
    reason: str | None


def business_state(number: str | None, status: Any, reason: str | None) -> BusinessState | None:
    """Return what is shown of a business; None if there is none."""
    return BusinessState(number=number, status=status, reason=reason) if number else None


class Profile(TypedDict):
    id: UuidText
    email: str
    new_email: str | None
    name: str | None
    locale: Literal["ko", "en"]
    phone: str | None
    roles: list[str]
    second_factor: bool
    business: BusinessState | None
    created_at: TimeText


def key(user_id: UUID) -> str:
    """Return the cache key of a profile."""
    return cache.key(user_id, "profile")


def refresh(connection: "Connection", user_id: UUID) -> None:
    """Read a changed profile, and cache it after the commit."""
    profile = read(connection, user_id)
    if profile:
        put(profile)


def put(profile: Profile) -> None:
    """Cache a profile; in a transaction that changes it, after the commit.

    After another change within the last CONTENDED_SECONDS, which may be newer, reads go to PostgreSQL for as long.
    """
    cache.put_unless_contended(
        key(UUID(profile["id"])), json_bytes(profile), seconds=CACHE_SECONDS, apart=CONTENDED_SECONDS
    )


def forget(*user_ids: UUID) -> None:
    """Clear the cached profiles of deleted accounts; in a transaction, after the commit."""
    cache.put(*map(key, user_ids), value="", seconds=CONTENDED_SECONDS)


def put_if_absent(profile: Profile) -> None:
    """Cache a profile that was read and not changed."""
    cache.put_if_absent(key(UUID(profile["id"])), json_bytes(profile), seconds=CACHE_SECONDS)


def read(connection: "Connection", user_id: UUID) -> Profile | None:
    """Return the profile of a user, or None if there is no such account."""
    row = connection.execute(_query(), {"user_id": user_id}).first()
    if row is None:
        return None
    return Profile(
        id=str(row.id),
        email=row.email,
        new_email=row.new_email,
        name=row.name,
        locale=row.locale,
        phone=row.phone,
        roles=row.roles,
        second_factor=row.confirmed_at is not None,
        business=business_state(row.number, row.status, row.reason),
        created_at=row.created_at.isoformat(),
    )


@functools.cache
def _query() -> "Select[Any]":
    # Imported on a cache miss: a cached read does not use the database.
    from sqlalchemy import bindparam, select

    from shared.postgresql.pool import prepared
    from shared.postgresql.tables import account, business, totp

    query = (
        select(
            *account.c["id", "email", "new_email", "name", "locale", "phone", "roles", "created_at"],
            business.c.number,
            business.c.status,
            business.c.reason,
            totp.c.confirmed_at,
        )
        .select_from(account.outerjoin(business).outerjoin(totp))
        .where(account.c.id == bindparam("user_id"))
    )
    return prepared(query)
