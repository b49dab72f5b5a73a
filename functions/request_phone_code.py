"""Request a code by text message to verify a phone number."""

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
"""Across all accounts: each text costs money, and may reach someone who has not asked for it."""
FIRST_OF_ACCOUNT = {"account+phone": "1/day", "phone": "40/day"}
"""Beyond PER_NUMBER, so that nobody can lock out a number's owner by using up its limit."""


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
    """Request a code to verify a phone number.

    The code arrives as a text message within seconds, in the language of the account, and is valid for five minutes. A
    new request replaces the previous one. The account keeps its verified number until the new one is verified.

    The number can be in E.164 or Korean notation and must be able to receive texts. Only numbers of certain regions are
    accepted, by default Korea. An account can make five requests an hour and ten a day. A number gets ten texts a day;
    beyond that, one a day for each account, up to fifty in all.
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
    """Count a text to a number.

    Raises:
        TooManyRequests: the number's limit is reached.
    """
    subjects = {"account": account, "phone": phone}
    try:
        enforce("request_phone_code", {"phone": PER_NUMBER}, subjects)
    except TooManyRequests:
        enforce("request_phone_code", FIRST_OF_ACCOUNT, subjects)
