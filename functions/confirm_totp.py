"""Confirm an authenticator app with one of its codes."""

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
"""How long an enrolment can be confirmed."""


class TotpConfirmation(RequestBody):
    code: Annotated[
        SecretStr,
        Field(min_length=6, max_length=32, description="Six digits; spaces are ignored.", examples=["123456"]),
    ]
    first_factor_code: FirstFactorCode = ABSENT


class NoTotpEnrolment(Problem):
    status = 409
    title = "There is no authenticator app to confirm"
    detail = "It is already confirmed, or its 15 minutes have passed. Start by setting one up."


@http_function(
    "POST",
    "/api/v1/users/me/totp/confirm",
    limits={"address": "60/minute", "account": "20/minute"},
    strongest_factor=True,
    problems=[NoTotpEnrolment, FirstFactorCodeRequired],
)
def confirm_totp(body: TotpConfirmation, caller: Caller) -> NewRecoveryCodes:
    """Confirm the authenticator app.

    From now on, logging in with a password also requires a code. The response contains ten recovery codes, each valid
    for one log-in without the app; they are not shown again. The user's other sessions end because they have not
    passed the second factor. This session continues, but operations that require a second factor need a new log-in.

    If the account has a role and no factor yet, `first_factor_code` is required.
    """
    user_id = caller.user_id
    waiting = select(totp.c.secret).where(
        totp.c.account_id == user_id, totp.c.confirmed_at.is_(None), totp.c.created_at > func.now() - LIFETIME
    )
    # Locks the account, so that meanwhile no log-in succeeds with only the password.
    with change(caller) as connection:
        first_factor.require_code(connection, caller, body.first_factor_code)
        secret = connection.scalar(waiting)
        if secret is None:
            raise NoTotpEnrolment
        step = step_of(user_id, secret, body.code.get_secret_value())
        if step is None:
            fault = "The code is wrong. Check that the clock of the app's device is correct."
            raise InvalidRequest(errors=[FieldError(pointer="/code", code="totp_wrong", detail=fault)])
        connection.execute(
            update(totp).where(totp.c.account_id == user_id).values(confirmed_at=func.now(), last_step=step)
        )
        codes = replace_recovery_codes(connection, user_id)
        sessions.end_all(connection, user_id, but=caller.session_id)
        announce(connection, TotpEnabled(user_id=user_id))
        profiles.refresh(connection, user_id)
    return codes
