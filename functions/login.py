"""Log in with an e-mail address and a password."""

from sqlalchemy import select

from shared import sessions
from shared.database import transaction
from shared.fields import EmailAddress, Password, RequestBody, canonical_email
from shared.http_function import http_function
from shared.passwords import verify_password
from shared.problems import Problem
from shared.sessions import TokenPair
from shared.tables import account, credential


class Credentials(RequestBody):
    email: EmailAddress
    password: Password


class InvalidCredentials(Problem):
    status = 401
    title = "The e-mail address or the password is wrong"
    detail = "Which of the two is not said, nor whether the address is known."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": "Bearer"})


class EmailNotVerified(Problem):
    status = 403
    title = "The e-mail address is not verified yet"
    detail = "Follow the link in the mail; register again to get a new one."


@http_function(
    "POST",
    "/api/v1/users/login",
    uses=["database", "access_tokens", "refresh_tokens"],
    problems=[InvalidCredentials, EmailNotVerified],
)
def login(body: Credentials) -> TokenPair:
    """Log in.

    Starts a session of 30 days. The access token is good for ten minutes, the refresh token for one refresh.
    An unknown address gets the same answer, after the same time, as a wrong password.
    """
    by_email = (
        select(account.c.id, account.c.status, credential.c.password_hash)
        .join(credential)
        .where(account.c.canonical_email == canonical_email(body.email))
    )
    with transaction() as connection:
        found = connection.execute(by_email).first()

    if not verify_password(found and found.password_hash, body.password.get_secret_value()) or not found:
        raise InvalidCredentials
    if found.status != "active":
        raise EmailNotVerified

    with transaction() as connection:
        caller, refresh_token = sessions.start(connection, found.id)
    return sessions.token_pair(caller, refresh_token)
