"""Ask for a code by text message, to verify a phone number."""

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from shared.events.outbox import announce
from shared.events.types import PhoneCodeRequested
from shared.framework.http_function import http_function
from shared.http.rate_limits import enforce
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import phone_verification
from shared.providers import sending_limits
from shared.runtime.problems import TooManyRequests
from shared.text.fields import RequestBody
from shared.users.phone_numbers import TextablePhoneNumber

PER_NUMBER = "10/day"
"""Over all accounts: each text costs money, and somebody who may not have asked for it reads it."""
FIRST_OF_ACCOUNT = {"account+phone": "1/day", "phone": "40/day"}
"""Beyond that each account has one, or whoever spends a number's limit locks its owner out; but not without end."""


class NewPhone(RequestBody):
    phone: TextablePhoneNumber


@http_function(
    "POST",
    "/api/v1/users/me/phone",
    status=202,
    recent_login=True,
    limits={"address": "60/minute", "account": "5/hour;10/day"},
)
def request_phone_code(body: NewPhone, caller: Caller) -> None:
    """Ask for a code that verifies a phone number.

    The code comes as a text message within seconds, in the language of the account, and is good for five minutes.
    A new request replaces the one before. The verified number of the account stays until the new one is verified.
    The number may be written in E.164 or as in Korea, and must be one that gets texts. An account may ask five
    times an hour and ten times a day, and a number is texted ten times a day; beyond that, once a day for
    each account, fifty times in all at the most. Only numbers of some regions are taken, by default those of Korea.
    """
    _count(str(caller.user_id), body.phone)
    sending_limits.count_text()
    row = {"phone": body.phone, "code_hash": None, "tries": 0, "requested_at": func.now(), "expires_at": None}
    with change(caller) as connection:
        connection.execute(
            insert(phone_verification)
            .values(account_id=caller.user_id, **row)
            .on_conflict_do_update(index_elements=["account_id"], set_=row)
        )
        announce(connection, PhoneCodeRequested(user_id=caller.user_id))


def _count(account: str, phone: str) -> None:
    """Counts a text to a number.

    Raises:
        TooManyRequests: the number's limit is reached.
    """
    subjects = {"account": account, "phone": phone}
    try:
        enforce("request_phone_code", {"phone": PER_NUMBER}, subjects)
    except TooManyRequests:
        enforce("request_phone_code", FIRST_OF_ACCOUNT, subjects)
