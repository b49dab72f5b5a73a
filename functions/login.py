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

# Built once, because composing a statement takes longer than executing it.
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
    detail = "Or the address is not verified yet, or the account is suspended. The response does not say which."
    authenticate = "Bearer"


class SecondFactorRequired(Problem):
    status = 401
    title = "A second factor is required"
    detail = "The password is right. Send 'challenge' and a code to /api/v1/users/login/second-factor within 5 minutes."
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

    Starts a session. The refresh token can be used once. An unknown or unverified address gets the same response as a
    wrong password, after the same time.

    Wrong passwords for an account are limited to ten a minute and twenty an hour from one IP address, and a hundred an
    hour from all. A correct one resets the count. A device that has logged in before sends its `device_token` in the
    Device-Token header. Then only wrong passwords from this device count, ten a minute and twenty an hour, so that
    nobody else can lock it out.

    If the account has an authenticator app, the response is the problem `second-factor-required` instead of tokens.
    Send its `challenge` with a code to /api/v1/users/login/second-factor.
    """
    with transaction() as connection:
        found = connection.execute(BY_EMAIL, {"email": canonical_email(body.email)}).first()
    logs.user_id.set(str(found.id) if found else "")

    is_right = verify_password(found and found.password_hash, body.password.get_secret_value())
    # A pending account gets the same error: otherwise registering an address would reveal whether it was free.
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
    """Return whether neither the password nor the second factor changed while the password was being verified.

    Called under the lock of the account, which such changes take too, so that no session outlives the change.
    """
    return connection.execute(UNCHANGED, {"user_id": user_id, "hash": password_hash}).first() is not None
