"""Register with an e-mail address and a password."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from uuid_utils.compat import uuid7

from shared.events.outbox import announce
from shared.events.types import RegistrationRepeated, UserRegistered
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import former_addresses
from shared.identity.passwords import check_acceptable, hash_password
from shared.postgresql.tables import account, credential
from shared.postgresql.transactions import transaction
from shared.text.fields import EmailAddress, Locale, Name, NewPassword, RequestBody, canonical_email


class Registration(RequestBody):
    email: EmailAddress
    password: NewPassword
    name: Name | None = None
    locale: Locale = "ko"


@http_function(
    "POST",
    "/api/v1/users",
    status=202,
    scaling=Scaling("hash", max_pods=5),  # half of login's, so that log-ins get the cores
    limits={"address": "60/minute", "mailbox+address": "5/hour", "mailbox": "20/hour"},
)
def register(body: Registration) -> None:
    """Register a user.

    The response is the same whether or not the address is taken. A new address gets a mail with a link that verifies
    it. If the address already has an account, its owner is told by mail that someone tried to register it again.
    Registering an address again before it is verified replaces the password and name, and sends a new link.
    """
    password = body.password.get_secret_value()
    check_acceptable(password, body.email, body.name)
    password_hash = hash_password(password)

    address = canonical_email(body.email)
    profile = {"email": body.email, "name": body.name, "locale": body.locale}
    create_or_replace_pending = (
        insert(account)
        .values(id=uuid7(), canonical_email=address, status="pending", **profile)
        .on_conflict_do_update(index_elements=["canonical_email"], set_=profile, where=account.c.status == "pending")
        .returning(account.c.id)
    )
    with transaction() as connection:
        is_kept = former_addresses.is_kept_for_another(connection, address)
        user_id = None if is_kept else connection.scalar(create_or_replace_pending)
        if user_id:
            row = {"password_hash": password_hash, "changed_at": func.now()}
            connection.execute(
                insert(credential)
                .values(account_id=user_id, **row)
                .on_conflict_do_update(index_elements=["account_id"], set_=row)
            )
            announce(connection, UserRegistered(user_id=user_id, locale=body.locale))
        else:
            # A former address that is kept for its account has no owner, so its event has no recipient.
            owner = connection.scalar(select(account.c.id).where(account.c.canonical_email == address)) or uuid7()
            announce(connection, RegistrationRepeated(user_id=owner))
