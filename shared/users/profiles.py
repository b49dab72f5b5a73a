"""Profiles: what users read about themselves, and its copy in the cache.

Whoever changes a part of it calls `refresh` in the transaction of the change.
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
"""Longer than anybody takes from the commit of a change to putting it, or from a read to putting that."""


class BusinessState(TypedDict):
    number: str
    status: Literal["pending", "verified", "rejected", "closed"]
    reason: str | None


def business_state(number: str | None, status: Any, reason: str | None) -> BusinessState | None:
    """What is shown of a business; nothing where there is none."""
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
    """The key of a profile in the cache."""
    return cache.key(user_id, "profile")


def refresh(connection: "Connection", user_id: UUID) -> None:
    """Reads a profile after it was changed, and puts it in the cache after the commit."""
    profile = read(connection, user_id)
    if profile:
        put(profile)


def put(profile: Profile) -> None:
    """Puts a profile in the cache; in a transaction that changes it, after the commit.

    Another change within the last seconds may be the later one: then PostgreSQL answers for as many seconds.
    """
    cache.put_unless_contended(
        key(UUID(profile["id"])), json_bytes(profile), seconds=CACHE_SECONDS, apart=CONTENDED_SECONDS
    )


def forget(*user_ids: UUID) -> None:
    """Empties the cached profiles of users whose accounts are deleted; in a transaction, after the commit."""
    cache.put(*map(key, user_ids), value="", seconds=CONTENDED_SECONDS)


def put_if_absent(profile: Profile) -> None:
    """Puts a profile that was only read in the cache."""
    cache.put_if_absent(key(UUID(profile["id"])), json_bytes(profile), seconds=CACHE_SECONDS)


def read(connection: "Connection", user_id: UUID) -> Profile | None:
    """The profile of a user; None when there is no such account."""
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
    # Imported on a miss of the cache: a warm read never meets the database.
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
