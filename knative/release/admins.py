"""Makes administrators: `aegis admin create`."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from uuid_utils.compat import uuid7

from knative.release.refused import Refused
from shared import authentication, former_addresses, profiles, sessions
from shared.database import transaction
from shared.events import PasswordResetRequested, RolesChanged, announce
from shared.fields import canonical_email, normalize_email
from shared.tables import account, credential, verification

HELP = """\
Makes the first administrator. Others are made with PATCH /api/v1/users/{user_id}.

A new account gets no password: its owner gets a mail with a link to set one, then logs in and
sets up a second factor, which every operation of administrators takes. An account that is there
already gets the role, and its sessions end. Repeat it as often as you like: nothing happens
twice, but an owner who has no password yet gets a new link.

The settings are those of the environment (DATABASE_URL, REDIS_URL); without DATABASE_URL those
of the service that make up runs on DATA_DIR (.local)."""

ADMIN = "admin"
_NEXT = "The owner gets a mail with a link to set a password, then logs in and sets up a second factor."


def create(email: str, locale: str) -> str:
    """Makes the owner of an address an administrator. Returns what was done.

    Raises:
        Refused: the address is malformed, or its account is suspended or withdrawn.
    """
    try:
        email, address = normalize_email(email), canonical_email(email)
    except ValueError:
        raise Refused(
            f"Nothing was changed. {email!r} is not an e-mail address. Write it as kim@example.com."
        ) from None
    new = {"email": email, "name": None, "locale": locale, "status": "active"}
    with transaction() as connection:
        if former_addresses.is_kept_for_another(connection, address):
            raise Refused(
                f"Nothing was changed. {email} was the address of an account until lately, and is kept for it for "
                f"{former_addresses.KEPT.days} days. Name another address."
            )
        made = connection.scalar(
            insert(account)
            .values(id=uuid7(), canonical_email=address, **new)
            .on_conflict_do_nothing(index_elements=["canonical_email"])
            .returning(account.c.id)
        )
        found = _lock(connection, address)
        if found.status in ("suspended", "withdrawn"):
            raise Refused(_refusal(email, found.status))
        has_password = found.has_password
        if found.status == "pending":
            # Whoever registered it never proved that it is theirs: nothing that they chose comes into force.
            connection.execute(update(account).where(account.c.id == found.id).values(new))
            connection.execute(delete(credential).where(credential.c.account_id == found.id))
            connection.execute(delete(verification).where(verification.c.account_id == found.id))
            has_password = False
        gets_role = ADMIN not in found.roles
        ended: Sequence[UUID] = ()
        if gets_role:
            roles = sorted([*found.roles, ADMIN])
            connection.execute(update(account).where(account.c.id == found.id).values(roles=roles))
            ended = sessions.end_all(connection, found.id)
            announce(connection, RolesChanged(user_id=found.id, roles=roles))
        if not has_password:
            announce(connection, PasswordResetRequested(user_id=found.id))
        profile = profiles.read(connection, found.id)
    if profile:
        profiles.put(profile)
    authentication.refuse_tokens_of(found.id, *ended)

    if made or found.status == "pending":
        return f"Made the administrator {email} ({found.id}). {_NEXT}"
    if not has_password:
        return f"{email} ({found.id}) is an administrator, and has no password yet. {_NEXT}"
    if gets_role:
        return (
            f"Made {email} ({found.id}) an administrator. Its sessions have ended: log in again, with a second factor."
        )
    return f"{email} ({found.id}) is an administrator already. Nothing was changed."


def _lock(connection: Connection, address: str) -> Any:
    query = (
        select(*account.c["id", "status", "roles"], credential.c.account_id.is_not(None).label("has_password"))
        .select_from(account.outerjoin(credential))
        .where(account.c.canonical_email == address)
        .with_for_update(of=account)
    )
    return connection.execute(query).one()


def _refusal(email: str, status: str) -> str:
    what = {
        "suspended": "is suspended. Another administrator can reinstate it",
        "withdrawn": "was withdrawn. Its owner restores it by logging in",
    }[status]
    return f"Nothing was changed. The account of {email} {what}; then repeat the command. Or name another address."
