"""Log in with an e-mail address and a password."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import Connection, bindparam, select

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http.clients import Client
from shared.http.rate_limits import forgive
from shared.identity import challenges, sessions
from shared.identity.challenges import SECOND_FACTOR
from shared.identity.credentials import GUESSES
from shared.identity.passwords import verify_password
from shared.identity.sessions import TokenPair
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, credential, totp
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.runtime.problems import Problem, ProblemExtensions
from shared.text.fields import EmailAddress, Password, RequestBody, canonical_email

# Made once, as to compose a statement takes longer than to execute it.
BY_EMAIL = prepared(
    select(*account.c["id", "status"], credential.c.password_hash, totp.c.confirmed_at)
    .select_from(account.join(credential).outerjoin(totp))
    .where(account.c.canonical_email == bindparam("email"))
)
UNCHANGED = prepared(
    select(credential.c.account_id)
    .outerjoin(totp, totp.c.account_id == credential.c.account_id)
    .where(
        credential.c.account_id == bindparam("user_id"),
        credential.c.password_hash == bindparam("hash"),
        totp.c.confirmed_at.is_(None),
    )
)


class Credentials(RequestBody):
    email: EmailAddress
    password: Password


class InvalidCredentials(Problem):
    status = 401
    title = "The e-mail address or the password is wrong"
    detail = "Or the address is not verified yet, or the account is suspended. Which of these it is, is not said."
    authenticate = "Bearer"


class SecondFactorRequired(Problem):
    status = 401
    title = "The second factor is needed"
    detail = "The password is right. Send 'challenge' and a code to /api/v1/users/login/second-factor in five minutes."
    authenticate = "Bearer"

    def __init__(self, challenge: str = "A" * 43) -> None:
        """challenge: from `challenges.create`."""
        super().__init__(extensions=ProblemExtensions(challenge=challenge, methods=["totp", "recovery_code"]))


@http_function(
    "POST",
    "/api/v1/users/login",
    scaling=Scaling("hash", max_pods=10),  # the maximum of the guide's HPA (4.7)
    limits={"address": "60/minute", **GUESSES},
    uses=["token_signing", "refresh_tokens"],
    problems=[InvalidCredentials, SecondFactorRequired],
)
def login(body: Credentials, client: Client, subjects: Mapping[str, str]) -> TokenPair:
    """Log in.

    Starts a session. The refresh token is good for one refresh.
    An unknown address and one that is not verified get the same answer, after the same time, as a wrong password.
    Guesses at a password are counted, until one is right: ten a minute and twenty an hour from one address, a
    hundred an hour from all. A device that logged in before sends its `device_token` in the header Device-Token:
    then only its own guesses count, ten a minute and twenty an hour, and nobody else's keep it out.
    An account with an authenticator app gets no tokens for its password, but the problem `second-factor-required`,
    whose member `challenge` goes with a code to /api/v1/users/login/second-factor.
    """
    with transaction() as connection:
        found = connection.execute(BY_EMAIL, {"email": canonical_email(body.email)}).first()
    logs.user_id.set(str(found.id) if found else "")

    is_right = verify_password(found and found.password_hash, body.password.get_secret_value())
    # A pending account is refused alike: whoever registers an address could else learn whether it was free.
    if not found or not is_right or found.status not in sessions.MAY_LOG_IN:
        raise InvalidCredentials
    forgive("login", GUESSES, subjects)
    if found.confirmed_at:
        with transaction() as connection:
            challenge = challenges.create(connection, SECOND_FACTOR, found.id)
        raise SecondFactorRequired(challenge)
    with transaction() as connection:
        tokens = sessions.log_in(connection, found.id, ["pwd"], client)
        if tokens is None or not _is_still_enough(connection, found.id, found.password_hash):
            raise InvalidCredentials
    return tokens


def _is_still_enough(connection: Connection, user_id: UUID, password_hash: str) -> bool:
    """Whether neither the password was changed nor a second factor set up while the password was verified.

    Asked once the account is locked, as it is by who changes these: so no session outlives the change.
    """
    return connection.execute(UNCHANGED, {"user_id": user_id, "hash": password_hash}).first() is not None
