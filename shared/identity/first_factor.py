"""The code that an account with a role needs to set up its first factor, in addition to the password.

Anyone who can read the mail can set the password. The code takes another channel: it comes from the operator or
administrator who has verified the person (NIST SP 800-63B-4, 4.1; ASVS 5.0, 6.4.1 and 6.4.4).
"""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from pydantic import Field, SecretStr
from sqlalchemy import Connection, delete, func

from shared.identity import verifications
from shared.identity.access_tokens import MULTI_FACTOR, Caller
from shared.identity.second_factors import new_code, read_code
from shared.identity.tokens import hash_token
from shared.postgresql.tables import verification
from shared.runtime.problems import Problem

LIFETIME = timedelta(hours=24)

FirstFactorCode = Annotated[
    SecretStr,
    Field(
        min_length=1,
        max_length=64,
        description="Only for the first factor of an account with a role: the code from `aegis admin`, or from the "
        "administrator who removed the factors. Spaces, dashes and case do not matter.",
        examples=["7K3M-QP0X-2A9D-VW5T-H8RC-4NZE"],
    ),
]


class FirstFactorCodeRequired(Problem):
    """The token identifies the caller, but this also requires the code (RFC 9110, 15.5.4)."""

    status = 403
    title = "The first factor of this account requires a code"
    detail = (
        "Nothing was changed. The account has a role: send a first_factor_code issued in the last "
        f"{LIFETIME // timedelta(hours=1)} hours by an administrator or operator. It is missing, wrong or expired."
    )


def issue_code(connection: Connection, account_id: UUID) -> str:
    """Issue a code for an account, replacing any earlier one. It is valid once, for 24 hours.

    Setting a password does not void it, because a new administrator does that first.
    """
    code = new_code()
    verifications.create(connection, account_id, verifications.FIRST_FACTOR, LIFETIME, token=read_code(code))
    return code


def require_code(connection: Connection, caller: Caller, given: SecretStr | None) -> None:
    """Spend the code of a caller who has a role and is about to set up a first factor; others need no code.

    Call this within `changes.change`, which accepts a session without a factor only if the account has none.

    Raises:
        FirstFactorCodeRequired: the code is missing, wrong or expired.
    """
    # The roles in the token are current: a change of roles ends all sessions.
    if not caller.roles or MULTI_FACTOR in caller.amr:
        return
    code = read_code(given.get_secret_value()) if given else None
    if code is None:
        raise FirstFactorCodeRequired
    spent = connection.execute(
        delete(verification).where(
            verification.c.account_id == caller.user_id,
            verification.c.purpose == verifications.FIRST_FACTOR,
            verification.c.token_hash == hash_token(code),
            verification.c.expires_at > func.now(),
        )
    )
    if not spent.rowcount:
        raise FirstFactorCodeRequired
