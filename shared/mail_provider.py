"""The provider that delivers mails, in the shape of SendGrid's API v3."""

import urllib3

from shared.problems import Problem, ServiceUnavailable
from shared.settings import settings

TIMEOUT_SECONDS = 5.0
"""For connecting, and again for the answer: together well within the lifetime of a claim on an event."""

_provider = urllib3.PoolManager(timeout=TIMEOUT_SECONDS, retries=False, maxsize=16)


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
