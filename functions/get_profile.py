"""Read one's own profile."""

import json
from typing import Literal

from typing_extensions import TypedDict

from shared import cache
from shared.authentication import Caller
from shared.http_function import http_function
from shared.problems import Unauthenticated

CACHE_SECONDS = 60


class Profile(TypedDict):
    id: str
    email: str
    name: str | None
    locale: Literal["ko", "en"]
    created_at: str


def profile_key(caller: Caller) -> str:
    return cache.key(caller.user_id, "profile")


@http_function("GET", "/api/v1/users/me", cached=profile_key)
def get_profile(caller: Caller, cached: bytes | None) -> Profile | bytes:
    """Read the caller's profile."""
    if cached:
        return cached
    profile = _read(caller)
    cache.put_if_absent(profile_key(caller), json.dumps(profile, ensure_ascii=False), seconds=CACHE_SECONDS)
    return profile


def _read(caller: Caller) -> Profile:
    # Imported on a miss: a warm read never meets the database.
    from sqlalchemy import select

    from shared.database import transaction
    from shared.tables import account

    columns = (account.c.id, account.c.email, account.c.name, account.c.locale, account.c.created_at)
    with transaction() as connection:
        row = connection.execute(select(*columns).where(account.c.id == caller.user_id)).first()
    if row is None:
        raise Unauthenticated
    return Profile(
        id=str(row.id), email=row.email, name=row.name, locale=row.locale, created_at=row.created_at.isoformat()
    )
