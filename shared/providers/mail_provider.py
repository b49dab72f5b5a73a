"""The provider that delivers mails, with SendGrid's API v3."""

import re

import urllib3

from shared.providers import calls
from shared.runtime.problems import Problem
from shared.runtime.settings import settings

ANSWER_SECONDS = 10.0

_PROVIDER = calls.Provider("mail", "The mail provider")


class MailRefused(Problem):
    status = 422
    title = "The mail provider rejected this mail"
    detail = "Sending it again would not help."


def send_mail(address: str, subject: str, text: str, html: str) -> None:
    """Send a mail through the provider (POST /v3/mail/send).

    Raises:
        ServiceUnavailable: the provider is unavailable or overloaded; retry later.
        MailRefused: the provider rejected the mail.
    """
    off = {"enable": False}
    message = {
        "personalizations": [{"to": [{"email": address}]}],
        "from": {"email": settings().email_from, "name": "Aegis"},
        "subject": subject,
        "content": [{"type": "text/plain", "value": text}, {"type": "text/html", "value": html}],
        # Tracking would send the link, and with it the token, through the provider's servers.
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
        raise MailRefused(f"{_PROVIDER} answered {response.status} and rejected {_faults(response)}.")
    if response.status >= 300:
        # Also 401 and 403, so that no mail is lost while a key is being replaced.
        raise calls.not_now(_PROVIDER, response)


def _faults(response: urllib3.BaseHTTPResponse) -> str:
    """Return the fields that the provider names. Not its messages, which may quote the address."""
    try:
        named = [str(error["field"]) for error in response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        named = []
    return ", ".join(field for field in named[:5] if re.fullmatch(r"[\w.]{1,80}", field)) or "an unnamed field"
