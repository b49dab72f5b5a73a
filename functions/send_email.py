"""Send the mail that an event calls for."""

import html
import tomllib
from datetime import timedelta
from functools import cache
from pathlib import Path
from string import Template

import urllib3
from sqlalchemy import select

from shared.database import transaction
from shared.event_function import event_function
from shared.events import RegistrationRepeated, UserRegistered
from shared.problems import Problem, ServiceUnavailable
from shared.settings import settings
from shared.tables import account
from shared.verifications import VERIFY_EMAIL, create

LINK_LIFETIME = timedelta(hours=24)
PROVIDER_TIMEOUT_SECONDS = 5.0
"""For connecting, and again for the answer: together well within the lifetime of a claim on the event."""

_TEXTS = Path(__file__).parents[1] / "shared" / "mails"
_provider = urllib3.PoolManager(timeout=PROVIDER_TIMEOUT_SECONDS, retries=False, maxsize=16)


class MailRefused(Problem):
    status = 422
    title = "The mail provider refuses this mail"
    detail = "Sending it again would not help."


@event_function(UserRegistered, RegistrationRepeated, uses=["email"])
def send_email(event: UserRegistered | RegistrationRepeated) -> None:
    """Send the mail that an event calls for, in the user's language."""
    with transaction() as connection:
        recipient = connection.execute(
            select(account.c.email, account.c.locale, account.c.status).where(account.c.id == event.user_id)
        ).first()
        match event:
            case _ if recipient is None:
                return
            case UserRegistered() if recipient.status == "pending":
                mail, token = "registered", create(connection, event.user_id, VERIFY_EMAIL, LINK_LIFETIME)
                # In the fragment, which browsers keep to themselves: no server's log holds the token.
                link = f"{settings().public_url}/verify-email#token={token}"
            case RegistrationRepeated():
                mail, link = "registration_repeated", ""
            case _:
                return
    _send(recipient.email, *compose(mail, recipient.locale, link))


def compose(mail: str, locale: str, link: str = "") -> tuple[str, str, str]:
    """Subject, plain text and HTML of a mail. Texts of users have no place in it: it may reach a stranger."""
    words = _mails()[mail][locale]
    paragraphs = words["text"].strip().split("\n\n")
    action = [words["action"], link] if link else []
    text = "\n\n".join([*paragraphs, *(["\n".join(action)] if action else [])]) + "\n"
    return (
        words["subject"],
        text,
        _layout().substitute(
            locale=locale,
            subject=html.escape(words["subject"]),
            paragraphs="".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs),
            action=f'<p><a href="{html.escape(link)}">{html.escape(words["action"])}</a></p>' if link else "",
        ),
    )


def _send(address: str, subject: str, text: str, html_text: str) -> None:
    """Hands a mail to the provider (SendGrid v3, POST /v3/mail/send).

    Raises:
        ServiceUnavailable: the provider is away or has too much to do; later it may take the mail.
        MailRefused: it will not take this mail.
    """
    off = {"enable": False}
    message = {
        "personalizations": [{"to": [{"email": address}]}],
        "from": {"email": settings().email_from, "name": "Aegis"},
        "subject": subject,
        "content": [{"type": "text/plain", "value": text}, {"type": "text/html", "value": html_text}],
        # Tracking would lead the link, and with it the token, through the provider's servers.
        "tracking_settings": {"click_tracking": off, "open_tracking": off},
    }
    try:
        response = _provider.request(
            "POST",
            f"{settings().email_service_url}/v3/mail/send",
            json=message,
            headers={"Authorization": f"Bearer {settings().email_api_key}"},
        )
    except urllib3.exceptions.HTTPError as error:
        raise ServiceUnavailable from error
    if response.status in (400, 413):
        raise MailRefused
    if response.status >= 300:
        # Also 401 and 403: a key that is being replaced must not cost a mail.
        raise ServiceUnavailable(retry_after=5)


@cache
def _mails() -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads((_TEXTS / "mails.toml").read_text("utf-8"))


@cache
def _layout() -> Template:
    return Template((_TEXTS / "layout.html").read_text("utf-8"))
