"""The provider that delivers mails, in the shape of SendGrid's API v3."""

import re

import urllib3

from shared.providers import calls
from shared.runtime.problems import Problem
from shared.runtime.settings import settings

ANSWER_SECONDS = 10.0

_PROVIDER = calls.Provider("mail", "The mail provider")


class MailRefused(Problem):
    status = 422
    title = "The mail provider refuses this mail"
    detail = "Sending it again would not help."


def send_mail(address: str, subject: str, text: str, html: str) -> None:
    """Hands a mail to the provider (POST /v3/mail/send).

    Raises:
        ServiceUnavailable: the provider is away or has too much to do; later it may take the mail.
        MailRefused: it will not take this mail.
    """
    off = {"enable": False}
    message = {
        "personalizations": [{"to": [{"email": address}]}],
        "from": {"email": settings().email_from, "name": "Aegis"},
        "subject": subject,
        "content": [{"type": "text/plain", "value": text}, {"type": "text/html", "value": html}],
        # Tracking would lead the link, and with it the token, through the provider's servers.
        "tracking_settings": {"click_tracking": off, "open_tracking": off},
    }
    response = calls.ask(
        _PROVIDER,
        "POST",
        f"{settings().email_service_url}/v3/mail/send",
        seconds=ANSWER_SECONDS,
        json=message,
        headers={"Authorization": f"Bearer {settings().email_api_key}"},
    )
    if response.status in (400, 413):
        raise MailRefused(f"{_PROVIDER} answered {response.status}, and finds fault with {_faults(response)}.")
    if response.status >= 300:
        # Also 401 and 403: a key that is being replaced must not cost a mail.
        raise calls.not_now(_PROVIDER, response)


def _faults(response: urllib3.BaseHTTPResponse) -> str:
    """The fields of a mail that the provider names. Not its words, which may quote the address."""
    try:
        named = [str(error["field"]) for error in response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        named = []
    return ", ".join(field for field in named[:5] if re.fullmatch(r"[\w.]{1,80}", field)) or "no field by name"
