"""Log in with the second factor, after the password."""

from typing import Annotated, Any

from pydantic import Field, SecretStr
from sqlalchemy import Connection, Row, Select, select

from shared.events.outbox import announce
from shared.events.types import RecoveryCodeUsed
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http.clients import Client
from shared.http.rate_limits import enforce, forgive
from shared.identity import challenges, known_devices, sessions
from shared.identity.challenges import SECOND_FACTOR
from shared.identity.second_factors import METHODS, recovery_code_hash, step_of, use_recovery_code, use_step
from shared.identity.sessions import TokenPair
from shared.postgresql.tables import account, challenge, totp
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.runtime.problems import Problem
from shared.text.fields import OpaqueToken, RequestBody

MAX_TRIES = 5
"""Per challenge."""
GUESSES = {"account": "20/hour", "device": "20/hour"}
"""Across all challenges, because a thief of the password can request many.

A known device has a separate limit, so that a thief cannot lock out the owner.
"""


class SecondFactor(RequestBody):
    challenge: OpaqueToken
    code: Annotated[
        SecretStr,
        Field(
            min_length=6,
            max_length=64,
            description="The six digits from the authenticator app, or a recovery code. Spaces and dashes are ignored.",
            examples=["123456", "7K3M-QP0X-2A9D-VW5T-H8RC-4NZE"],
        ),
    ]


class InvalidSecondFactor(Problem):
    status = 401
    title = "The code is not valid"
    detail = "The code is wrong or was already used. Wait for the next one in the app, or send a recovery code."
    authenticate = "Bearer"


class ChallengeOver(Problem):
    status = 401
    title = "The challenge is no longer valid"
    detail = "It is unknown or expired, or its five attempts are used up. Log in with the password to get a new one."
    authenticate = "Bearer"


@http_function(
    "POST",
    "/api/v1/users/login/second-factor",
    scaling=Scaling("database", max_pods=3),  # a third of login's, as there is no password to hash
    limits={"address": "30/minute"},
    uses=["token_signing", "refresh_tokens"],
    problems=[InvalidSecondFactor, ChallengeOver],
)
def login_with_second_factor(body: SecondFactor, client: Client, device_token: str | None) -> TokenPair:
    """Log in with the second factor.

    Send the `challenge` from the problem `second-factor-required` within five minutes, and a code: the current one in
    the app, which works once, or a recovery code, which is then used up. A challenge allows five attempts. Starts a
    session, like the log-in with a password. An account has 20 attempts an hour, and so has each device that sends the
    Device-Token of an earlier log-in. A correct code resets the count.
    """
    token, code = body.challenge.get_secret_value(), body.code.get_secret_value()
    waiting: Select[Any] = (
        select(*totp.c["account_id", "secret"], account.c.canonical_email)
        .select_from(account.join(totp).join(challenge, challenge.c.account_id == account.c.id))
        .where(challenges.is_live(token, SECOND_FACTOR), totp.c.confirmed_at.is_not(None))
    )
    with transaction() as connection:
        found = connection.execute(waiting).first()
    if found is None:
        raise ChallengeOver
    logs.user_id.set(str(found.account_id))
    device = known_devices.recognize(device_token, found.canonical_email) if device_token else None
    counted = (
        "login_with_second_factor",
        GUESSES,
        {"device": device} if device else {"account": str(found.account_id)},
    )
    enforce(*counted)

    tokens = None
    with transaction() as connection:
        locked = sessions.lock_account(connection, found.account_id)
        may_try = locked and challenges.count_try(connection, token, SECOND_FACTOR, most=MAX_TRIES)
        if locked and may_try and _use(connection, found, code):
            challenges.spend(connection, token, SECOND_FACTOR, found.account_id)
            tokens = sessions.start(connection, locked, ["pwd", *METHODS], client)
    if tokens is None:
        raise InvalidSecondFactor if may_try else ChallengeOver
    forgive(*counted)
    return tokens


def _use(connection: Connection, found: Row[Any], code: str) -> bool:
    """Use up the code if it is correct; return whether it is."""
    if step := step_of(found.account_id, found.secret, code):
        return use_step(connection, found.account_id, step)
    code_hash = recovery_code_hash(found.account_id, code)
    if code_hash is None or not use_recovery_code(connection, found.account_id, code_hash):
        return False
    announce(connection, RecoveryCodeUsed(user_id=found.account_id))
    return True
