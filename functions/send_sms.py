"""Send the text message with the code that verifies a phone number."""

import base64
import secrets
import tomllib
from datetime import timedelta
from functools import cache
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlencode

import urllib3
from sqlalchemy import func, update

from shared.events.types import PhoneCodeRequested
from shared.framework.event_function import event_function
from shared.postgresql.tables import account, phone_verification
from shared.postgresql.transactions import transaction
from shared.providers import calls
from shared.runtime.problems import Problem
from shared.runtime.settings import settings
from shared.users.phone_numbers import hash_phone_code

CODE_LIFETIME = timedelta(minutes=5)
ANSWER_SECONDS = 10.0

_PROVIDER = calls.Provider("sms", "The provider of text messages")
_TEXTS = Path(__file__).parents[1] / "shared" / "providers" / "mail_texts" / "texts.toml"
# The provider's error codes that are worth a retry: wrong credentials, too many requests.
_NOT_NOW = (20003, 20429)


class TextRefused(Problem):
    status = 422
    title = "The provider of text messages rejected this one"
    detail = "Sending it again would not help."


# In order, so that the last text to arrive has the valid code.
@event_function(PhoneCodeRequested, uses=["sms", "encryption"])
def send_sms(event: PhoneCodeRequested) -> None:
    """Send the code that verifies a phone number, in the user's language.

    The code is created here and stored as a hash, so that no event contains it. Nothing is sent if the account is not
    active or the number is no longer waiting for a code.
    """
    code = f"{secrets.randbelow(1_000_000):06}"
    make = (
        update(phone_verification)
        .where(
            phone_verification.c.account_id == event.user_id,
            account.c.id == phone_verification.c.account_id,
            account.c.status == "active",
        )
        .values(
            code_hash=hash_phone_code(event.user_id, code), tries=0, expires_at=func.clock_timestamp() + CODE_LIFETIME
        )
        .returning(phone_verification.c.phone, account.c.locale)
    )
    with transaction() as connection:
        recipient = connection.execute(make).first()
    if recipient:
        _send(recipient.phone, compose(recipient.locale, code))


def compose(locale: str, code: str) -> str:
    """Return the text. Its last line makes phones offer the code only on our pages (WICG origin-bound codes)."""
    return f"{Template(_texts()['phone_code'][locale]).substitute(code=code)}\n\n@{settings().passkey_domain} #{code}"


def _send(number: str, text: str) -> None:
    """Send a text through the provider (Twilio, POST /2010-04-01/Accounts/{Sid}/Messages.json).

    Raises:
        ServiceUnavailable: the provider is unavailable or overloaded; retry later.
        TextRefused: the provider rejected the text, for example because the number does not exist (21211, 21614) or its
            owner has opted out (21610).
    """
    credentials = settings().sms_api_key
    # The token, after the last colon or without one the whole text, must not be in a URL.
    account_sid = credentials.rpartition(":")[0]
    message = {
        "To": number,
        "From": settings().sms_from,
        "Body": text,
        # In seconds, so that no expired code arrives.
        "ValidityPeriod": int(CODE_LIFETIME.total_seconds()),
    }
    response = calls.ask(
        _PROVIDER,
        "POST",
        f"{settings().sms_service_url}/2010-04-01/Accounts/{account_sid}/Messages.json",
        seconds=ANSWER_SECONDS,
        body=urlencode(message),
        headers={
            "Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )
    if response.status < 300:
        return
    code = _error_code(response)
    if response.status == 400 and code not in _NOT_NOW:
        raise TextRefused(f"{_PROVIDER} answered 400 with the error {code}.")
    # Also 401 and 403, so that no text is lost while a key is being replaced.
    raise calls.not_now(_PROVIDER, response)


def _error_code(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return the provider's error code, if the response has one."""
    try:
        answer: Any = response.json()
    except ValueError:
        return None
    code = answer.get("code") if isinstance(answer, dict) else None
    return code if isinstance(code, int) else None


@cache
def _texts() -> dict[str, dict[str, str]]:
    return tomllib.loads(_TEXTS.read_text("utf-8"))
