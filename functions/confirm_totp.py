"""Confirm an authenticator app by one of its codes."""

from datetime import timedelta
from typing import Annotated

from pydantic import Field, SecretStr
from sqlalchemy import func, select, update

from shared.events.outbox import announce
from shared.events.types import TotpEnabled
from shared.framework.http_function import http_function
from shared.identity import first_factor, sessions
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.first_factor import FirstFactorCode, FirstFactorCodeRequired
from shared.identity.second_factors import NewRecoveryCodes, replace_recovery_codes, step_of
from shared.postgresql.tables import totp
from shared.runtime.problems import FieldError, InvalidRequest, Problem
from shared.text.fields import ABSENT, RequestBody
from shared.users import profiles

LIFETIME = timedelta(minutes=15)
"""Of an enrolment that waits to be confirmed."""


class TotpConfirmation(RequestBody):
    code: Annotated[
        SecretStr,
        Field(min_length=6, max_length=32, description="Six digits of the app, also as 123 456.", examples=["123456"]),
    ]
    first_factor_code: FirstFactorCode = ABSENT


class NoTotpEnrolment(Problem):
    status = 409
    title = "No authenticator app waits to be confirmed"
    detail = "It was confirmed already, or its 15 minutes are over. Begin to set it up first."


@http_function(
    "POST",
    "/api/v1/users/me/totp/confirm",
    limits={"address": "60/minute", "account": "20/minute"},
    strongest_factor=True,
    problems=[NoTotpEnrolment, FirstFactorCodeRequired],
)
def confirm_totp(body: TotpConfirmation, caller: Caller) -> NewRecoveryCodes:
    """Confirm the authenticator app.

    From now on logging in with a password takes a code as well. The ten recovery codes, each good for one log-in
    without the app, are shown this once. The user's other sessions end, as they never passed the second factor. Nor has
    this one, which goes on: for what takes a second factor, log in with it.

    Where the account has a role and no factor yet, it also takes `first_factor_code`.
    """
    user_id = caller.user_id
    waiting = select(totp.c.secret).where(
        totp.c.account_id == user_id, totp.c.confirmed_at.is_(None), totp.c.created_at > func.now() - LIFETIME
    )
    # The lock of the account: no log-in slips through by the password alone while this takes effect.
    with change(caller) as connection:
        first_factor.require_code(connection, caller, body.first_factor_code)
        secret = connection.scalar(waiting)
        if secret is None:
            raise NoTotpEnrolment
        step = step_of(user_id, secret, body.code.get_secret_value())
        if step is None:
            fault = "This is not the code that the app shows. Is the clock of its device right?"
            raise InvalidRequest(errors=[FieldError(pointer="/code", code="totp_wrong", detail=fault)])
        connection.execute(
            update(totp).where(totp.c.account_id == user_id).values(confirmed_at=func.now(), last_step=step)
        )
        codes = replace_recovery_codes(connection, user_id)
        sessions.end_all(connection, user_id, but=caller.session_id)
        announce(connection, TotpEnabled(user_id=user_id))
        profiles.refresh(connection, user_id)
    return codes
