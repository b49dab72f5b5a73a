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
# Of the provider's error codes those that say "not now": the credentials, too many requests.
_NOT_NOW = (20003, 20429)


class TextRefused(Problem):
    status = 422
    title = "The provider of text messages refuses this one"
    detail = "Sending it again would not help."


# In order, so that the last text to arrive holds the code that counts.
@event_function(PhoneCodeRequested, uses=["sms", "encryption"])
def send_sms(event: PhoneCodeRequested) -> None:
    """Send the code that verifies a phone number, in the user's language.

    The code is made here and stored as a hash, so that no event holds it. Nothing is sent when the account is not
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
    """The text, ending in the line by which phones offer the code to our pages alone (WICG origin-bound codes)."""
    return f"{Template(_texts()['phone_code'][locale]).substitute(code=code)}\n\n@{settings().passkey_domain} #{code}"


def _send(number: str, text: str) -> None:
    """Hands a text to the provider (Twilio, POST /2010-04-01/Accounts/{Sid}/Messages.json).

    Raises:
        ServiceUnavailable: the provider is away or has too much to do; later it may take the text.
        TextRefused: it will not take this text, such as to a number that does not exist (21211, 21614) or whose
            owner has opted out (21610).
    """
    credentials = settings().sms_api_key
    # The last part, or a text without a colon, is the token: it stands in no URL.
    account_sid = credentials.rpartition(":")[0]
    message = {
        "To": number,
        "From": settings().sms_from,
        "Body": text,
        # In seconds: a code that has expired must not arrive.
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
    # Also 401 and 403: a key that is being replaced must not cost a text.
    raise calls.not_now(_PROVIDER, response)


def _error_code(response: urllib3.BaseHTTPResponse) -> int | None:
    """The provider's own code of an error, where its answer has one."""
    try:
        answer: Any = response.json()
    except ValueError:
        return None
    code = answer.get("code") if isinstance(answer, dict) else None
    return code if isinstance(code, int) else None


@cache
def _texts() -> dict[str, dict[str, str]]:
    return tomllib.loads(_TEXTS.read_text("utf-8"))
