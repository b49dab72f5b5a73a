"""Create administrators and codes for their first second factor: `aegis admin`."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from uuid_utils.compat import uuid7

from knative.terminal import Refused, Result
from shared.events.outbox import announce
from shared.events.types import PasswordResetRequested, RolesChanged
from shared.identity import first_factor, former_addresses, sessions
from shared.identity.factors import has_any
from shared.postgresql.tables import account, credential, verification
from shared.postgresql.transactions import transaction
from shared.text.fields import canonical_email, normalize_email
from shared.users import profiles

ADMIN = "admin"
_NEXT = "The owner receives a mail with a link to set a password, then logs in and sets up a second factor."


def create(email: str, locale: str) -> Result:
    """Make the owner of an address an administrator. Return what was done.

    Raises:
        Refused: the address is malformed, or its account is suspended or withdrawn.
    """
    try:
        email, address = normalize_email(email), canonical_email(email)
    except ValueError:
        raise Refused(
            f"Nothing was changed. {email!r} is not an e-mail address. An address looks like kim@example.com."
        ) from None
    new = {"email": email, "name": None, "locale": locale, "status": "active"}
    with transaction() as connection:
        if former_addresses.is_kept_for_another(connection, address):
            raise Refused(
                f"Nothing was changed. An account recently gave up the address {email}, which stays reserved for "
                f"that account for {former_addresses.KEPT.days} days. Use another address."
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
            # Whoever registered it never proved that they own the address: discard everything they set.
            connection.execute(update(account).where(account.c.id == found.id).values(new))
            connection.execute(delete(credential).where(credential.c.account_id == found.id))
            connection.execute(delete(verification).where(verification.c.account_id == found.id))
            has_password = False
        code = None if found.has_factor else first_factor.issue_code(connection, found.id)
        gets_role = ADMIN not in found.roles
        if gets_role:
            roles = sorted([*found.roles, ADMIN])
            connection.execute(update(account).where(account.c.id == found.id).values(roles=roles))
            sessions.end_all(connection, found.id)
            announce(connection, RolesChanged(user_id=found.id, roles=roles))
        if not has_password:
            announce(connection, PasswordResetRequested(user_id=found.id))
        profiles.refresh(connection, found.id)

    if made or found.status == "pending":
        done = f"Made the administrator {email} ({found.id}). {_NEXT}"
    elif not has_password:
        done = f"{email} ({found.id}) is an administrator with no password yet. {_NEXT}"
    elif gets_role:
        done = (
            f"Made {email} ({found.id}) an administrator. All sessions have ended: log in again with a second factor."
        )
    else:
        done = f"{email} ({found.id}) is already an administrator."
        if not code:
            done += " Nothing was changed."
    told = {"id": str(found.id), "email": email, "is_new": gets_role, "code": code}
    return Result(f"{done}\n{_shown(code)}" if code else done, told)


def new_code(email: str) -> Result:
    """Issue a new code to an administrator who has no factor yet. Return what was done.

    Raises:
        Refused: the account is no administrator's, is not active, or has a factor.
    """
    try:
        address = canonical_email(email)
    except ValueError:
        raise Refused(f"Nothing was changed. {email!r} is not an e-mail address.") from None
    with transaction() as connection:
        found = _lock(connection, address)
        if found is None or ADMIN not in found.roles:
            raise Refused(
                f"Nothing was changed. {email} is not an administrator. Create one with: aegis admin create EMAIL"
            )
        if found.status in ("suspended", "withdrawn"):
            raise Refused(_refusal(email, found.status))
        if found.has_factor:
            raise Refused(
                f"Nothing was changed. {email} has a second factor. If it is lost, another administrator removes it: "
                f"DELETE /api/v1/users/{found.id}/factors returns a new code."
            )
        code = first_factor.issue_code(connection, found.id)
    return Result(
        f"A new code for {email} ({found.id}). Any earlier code is void.\n{_shown(code)}",
        {"id": str(found.id), "email": email, "code": code},
    )


def _shown(code: str) -> str:
    hours = first_factor.LIFETIME // timedelta(hours=1)
    return f"Code for the first second factor, valid once within {hours} hours, shown only now: {code}"


def _lock(connection: Connection, address: str) -> Any:
    """Lock the account of an address and return it, or None if there is none."""
    query = (
        select(
            *account.c["id", "status", "roles"],
            credential.c.account_id.is_not(None).label("has_password"),
            has_any(account.c.id).label("has_factor"),
        )
        .select_from(account.outerjoin(credential))
        .where(account.c.canonical_email == address)
        .with_for_update(of=account)
    )
    return connection.execute(query).first()


def _refusal(email: str, status: str) -> str:
    what = {
        "suspended": "is suspended. Another administrator can reinstate it",
        "withdrawn": "was withdrawn. Its owner restores it by logging in",
    }[status]
    return f"Nothing was changed. The account of {email} {what}; then repeat the command, or use another address."
