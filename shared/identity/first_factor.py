"""The code with which a holder of a role binds their first factor: the password alone is not enough for that.

A password is set by whoever reads the mail. The code goes another way: from the operator or administrator who has made
sure of the person (NIST SP 800-63B-4, 4.1; ASVS 5.0, 6.4.1 and 6.4.4).
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
    """Whoever asks is known by a token, but may not do this without the code (RFC 9110, 15.5.4)."""

    status = 403
    title = "The first factor of this account takes a code"
    detail = (
        "Nothing was changed. The account has a role: send first_factor_code, a code of the last "
        f"{LIFETIME // timedelta(hours=1)} hours from an administrator or operator. It is missing, wrong or over."
    )


def issue_code(connection: Connection, account_id: UUID) -> str:
    """A new code for an account, in place of an earlier one; it ends after 24 hours, or with the factor that it binds.

    It goes on when a password is set meanwhile, as a new administrator does.
    """
    code = new_code()
    verifications.create(connection, account_id, verifications.FIRST_FACTOR, LIFETIME, token=read_code(code))
    return code


def require_code(connection: Connection, caller: Caller, given: SecretStr | None) -> None:
    """Spends the code of a caller who holds a role and is about to bind a first factor; asks nobody else for one.

    Call it within `changes.change`, which lets a session without a factor pass only where the account has none.

    Raises:
        FirstFactorCodeRequired: the code is missing, wrong or over.
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
