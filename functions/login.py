"""Log in with an e-mail address and a password."""

from sqlalchemy import select

from shared import sessions
from shared.clients import Client
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
    detail = "Or the address is not verified yet: then follow the link in the mail. Which of these it is, is not said."

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": "Bearer"})


@http_function(
    "POST",
    "/api/v1/users/login",
    limits={"address": "60/minute", "email+address": "10/minute", "email": "100/hour"},
    uses=["database", "access_tokens", "refresh_tokens"],
    problems=[InvalidCredentials],
)
def login(body: Credentials, client: Client) -> TokenPair:
    """Log in.

    Starts a session of 30 days. The access token is good for ten minutes, the refresh token for one refresh.
    An unknown address and one that is not verified get the same answer, after the same time, as a wrong password.
    """
    by_email = (
        select(account.c.id, account.c.status, credential.c.password_hash)
        .join(credential)
        .where(account.c.canonical_email == canonical_email(body.email))
    )
    with transaction() as connection:
        found = connection.execute(by_email).first()

    is_right = verify_password(found and found.password_hash, body.password.get_secret_value())
    if not found or not is_right:
        raise InvalidCredentials
    with transaction() as connection:
        tokens = sessions.log_in(connection, found.id, ["pwd"], client)
    if tokens is None:
        # A pending account is refused alike: whoever registers an address could else learn whether it was free.
        raise InvalidCredentials
    return tokens
