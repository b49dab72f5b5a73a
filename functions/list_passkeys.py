"""List the caller's passkeys."""

from sqlalchemy import select
from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.postgresql.tables import passkey
from shared.postgresql.transactions import transaction
from shared.text.formats import TimeText, UuidText


class Passkey(TypedDict):
    id: UuidText
    name: str
    created_at: TimeText
    last_used_at: TimeText | None


class PasskeyList(TypedDict):
    passkeys: list[Passkey]


@http_function("GET", "/api/v1/users/me/passkeys")
def list_passkeys(caller: Caller) -> PasskeyList:
    """List the caller's passkeys, oldest first.

    Use `id` to remove a passkey. `last_used_at` is null until the passkey is used to log in.
    """
    own = (
        select(*passkey.c["id", "name", "created_at", "last_used_at"])
        .where(passkey.c.account_id == caller.user_id)
        .order_by(passkey.c.id)
    )
    with transaction() as connection:
        rows = connection.execute(own).all()
    return PasskeyList(
        passkeys=[
            Passkey(
                id=str(row.id),
                name=row.name,
                created_at=row.created_at.isoformat(),
                last_used_at=row.last_used_at.isoformat() if row.last_used_at else None,
            )
            for row in rows
        ]
    )
