"""Send the mail that an event calls for."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from shared.events import types
from shared.events.types import Event
from shared.framework.event_function import event_function
from shared.identity import former_addresses
from shared.identity.verifications import CHANGE_EMAIL, RESET_PASSWORD, VERIFY_EMAIL, create
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.providers import sending_limits
from shared.providers.mail_provider import send_mail
from shared.providers.mail_texts import compose
from shared.runtime.settings import settings
from shared.text.fields import mailbox


@dataclass(frozen=True)
class Link:
    """The link in a mail: the page, and the purpose and lifetime of its token."""

    page: str
    purpose: str
    lifetime: timedelta


@dataclass(frozen=True)
class Mail:
    """The mail that an event causes: its section in mail_texts/mails.toml, and the account states that receive it."""

    event: type[Event]
    section: str
    states: frozenset[str]
    link: Link | None = None
    to_new_address: bool = False

    @property
    def is_to_unverified(self) -> bool:
        """True if anyone can cause this mail to be sent to any address."""
        return self.to_new_address or self.states == PENDING


PENDING, ACTIVE, SUSPENDED, WITHDRAWN = (
    frozenset({state}) for state in ("pending", "active", "suspended", "withdrawn")
)
VERIFIED = ACTIVE | SUSPENDED | WITHDRAWN
"""Accounts with a verified address: they are told what happened, even if their state has changed since."""

VERIFY = Link("verify-email", VERIFY_EMAIL, timedelta(hours=24))
CHANGE = Link("verify-email", CHANGE_EMAIL, timedelta(hours=24))
RESET = Link("reset-password", RESET_PASSWORD, timedelta(minutes=30))

MAILS = (
    Mail(types.UserRegistered, "registered", PENDING, VERIFY),
    Mail(types.RegistrationRepeated, "registration_repeated", ACTIVE | WITHDRAWN),
    Mail(types.EmailVerificationRequested, "email_verification_requested", PENDING, VERIFY),
    Mail(types.EmailVerificationRequested, "new_email", ACTIVE, CHANGE, to_new_address=True),
    Mail(types.EmailChangeRequested, "email_change_requested", VERIFIED),
    Mail(types.EmailChanged, "email_changed", VERIFIED),
    Mail(types.EmailReplaced, "email_replaced", VERIFIED),
    Mail(types.EmailChangeUndone, "email_change_undone", VERIFIED),
    Mail(types.PasswordResetRequested, "password_reset_requested", ACTIVE | WITHDRAWN, RESET),
    Mail(types.PasswordChanged, "password_changed", VERIFIED),
    Mail(types.RefreshTokenReused, "refresh_token_reused", VERIFIED),
    Mail(types.TotpEnabled, "totp_enabled", VERIFIED),
    Mail(types.TotpRemoved, "totp_removed", VERIFIED),
    Mail(types.RecoveryCodeUsed, "recovery_code_used", VERIFIED),
    Mail(types.RecoveryCodesRenewed, "recovery_codes_renewed", VERIFIED),
    Mail(types.PasskeyRegistered, "passkey_registered", VERIFIED),
    Mail(types.PasskeyRemoved, "passkey_removed", VERIFIED),
    Mail(types.FactorsRemoved, "factors_removed", VERIFIED),
    Mail(types.PhoneVerified, "phone_verified", VERIFIED),
    Mail(types.PhoneRemoved, "phone_removed", VERIFIED),
    Mail(types.BusinessVerified, "business_verified", ACTIVE),
    Mail(types.BusinessRejected, "business_rejected", ACTIVE),
    Mail(types.BusinessClosed, "business_closed", ACTIVE),
    Mail(types.UserWithdrawn, "withdrawn", WITHDRAWN),
    Mail(types.UserRestored, "restored", ACTIVE),
    Mail(types.UserSuspended, "suspended", SUSPENDED),
    Mail(types.UserReinstated, "reinstated", ACTIVE),
    Mail(types.SessionsEnded, "sessions_ended", VERIFIED),
    Mail(types.RolesChanged, "roles_changed", ACTIVE),
)


# In order, so that a user's mails arrive in the order of the events.
@event_function(*dict.fromkeys(mail.event for mail in MAILS), uses=["email", "cache"])
def send_email(event: Event) -> None:
    """Send the mail that an event calls for, in the user's language.

    The token of a link is created here and stored as a hash, so that no event contains it. Nothing is sent if the
    account is gone or its status no longer fits the mail. Mails to unverified addresses are dropped once the limit for
    the mailbox or the whole service is reached.
    """
    with ExitStack() as within:
        _send(event, within)


def _send(event: Event, within: ExitStack) -> None:
    link = ""
    with transaction() as connection:
        # Locked, so that a concurrent change of address or password waits, and then voids the token created here.
        recipient = connection.execute(
            select(*account.c["email", "new_email", "locale", "status"])
            .where(account.c.id == event.user_id)
            .with_for_update(read=True)
        ).first()
        mail = _mail(event, recipient.status) if recipient else None
        if recipient is None or mail is None:
            return
        address = recipient.new_email if mail.to_new_address else recipient.email
        if isinstance(event, types.EmailReplaced):
            undo = former_addresses.offer_undo(connection, event.former_email_id)
            address = undo and undo.address
            link = _link("undo-email-change", undo.token) if undo else ""
        if address is None:
            return  # the change was cancelled or undone
        if mail.is_to_unverified and not within.enter_context(sending_limits.mail_to_unverified(address)):
            return
        if mail.link:
            token = create(connection, event.user_id, mail.link.purpose, mail.link.lifetime)
            link = _link(mail.link.page, token)
    send_mail(mailbox(address), *compose(mail.section, recipient.locale, link))


def _link(page: str, token: str) -> str:
    # In the fragment, which browsers do not send, so that no server logs the token.
    return f"{settings().public_url}/{page}#token={token}"


def _mail(event: Event, status: str) -> Mail | None:
    return next((mail for mail in MAILS if mail.event is type(event) and status in mail.states), None)
