"""Verify a phone number with the code from the text message."""

import hmac
import re
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection, Row, delete, func, update

from shared.events.outbox import announce
from shared.events.types import PhoneVerified
from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import account, phone_verification
from shared.runtime.problems import Problem
from shared.text.fields import RequestBody
from shared.text.normalisation import plain
from shared.users import profiles
from shared.users.phone_numbers import hash_phone_code

MAX_TRIES = 5
CODE = "[0-9]{6}"


def _digits(code: SecretStr) -> SecretStr:
    digits = re.sub("[ -]", "", plain(code.get_secret_value()))
    if not re.fullmatch(CODE, digits):
        raise PydanticCustomError("code", "The code must have six digits.")
    return SecretStr(digits)


class PhoneCode(RequestBody):
    code: Annotated[
        SecretStr,
        Field(min_length=6, max_length=32, description="Six digits; spaces are ignored.", examples=["123456"]),
        AfterValidator(_digits),
    ]


class InvalidPhoneCode(Problem):
    status = 400
    title = "The code is not valid"
    detail = "It is wrong or expired, was tried five times, or a newer one was sent. Request a new one if needed."


@http_function(
    "POST",
    "/api/v1/users/me/phone/verify",
    status=204,
    strongest_factor=True,
    problems=[InvalidPhoneCode],
)
def verify_phone(body: PhoneCode, caller: Caller) -> None:
    """Verify a phone number.

    The code from the text message works once, within five minutes. The profile then shows the number. After five wrong
    attempts the code is invalid: request a new one.
    """
    with change(caller) as connection:
        found = _try(connection, caller.user_id)
        given = hash_phone_code(caller.user_id, body.code.get_secret_value())
        is_right = found is not None and hmac.compare_digest(found.code_hash, given)
        if found and is_right:
            connection.execute(
                update(account)
                .where(account.c.id == caller.user_id)
                .values(phone=found.phone, phone_verified_at=func.now())
            )
            connection.execute(delete(phone_verification).where(phone_verification.c.account_id == caller.user_id))
            announce(connection, PhoneVerified(user_id=caller.user_id))
            profiles.refresh(connection, caller.user_id)
    if not is_right:
        # Raised after the transaction, so that the attempt stays counted.
        raise InvalidPhoneCode


def _try(connection: Connection, user_id: UUID) -> Row[Any] | None:
    """Use up one attempt and return the hash of a live code and the number; locked, so that each attempt counts."""
    return connection.execute(
        update(phone_verification)
        .where(
            phone_verification.c.account_id == user_id,
            phone_verification.c.code_hash.is_not(None),
            phone_verification.c.expires_at > func.clock_timestamp(),
            phone_verification.c.tries < MAX_TRIES,
        )
        .values(tries=phone_verification.c.tries + 1)
        .returning(phone_verification.c.code_hash, phone_verification.c.phone)
    ).first()
