"""Request the options for logging in with a passkey."""

from typing import Literal

from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import challenges, passkeys
from shared.identity.challenges import PASSKEY_LOGIN
from shared.identity.passkeys import CredentialDescriptor
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings


class PasskeyRequestOptions(TypedDict):
    """PublicKeyCredentialRequestOptionsJSON (WebAuthn Level 3, 5.1.9)."""

    challenge: str
    timeout: int
    rpId: str
    allowCredentials: list[CredentialDescriptor]
    userVerification: Literal["required"]


@http_function(
    "POST",
    "/api/v1/users/login/passkey/options",
    scaling=Scaling("database", max_pods=3),  # a third of login's, as there is no password to hash
    uses=["public_url"],
)
def request_passkey_login() -> PasskeyRequestOptions:
    """Request the options for logging in with a passkey.

    Pass the response to `PublicKeyCredential.parseRequestOptionsFromJSON`, and the result to
    `navigator.credentials.get`. Send the credential to /api/v1/users/login/passkey within five minutes. No user name is
    needed: the device offers the passkeys that it has for this site.
    """
    with transaction() as connection:
        challenge = challenges.create(connection, PASSKEY_LOGIN)
    return PasskeyRequestOptions(
        challenge=challenge,
        timeout=passkeys.TIMEOUT_MILLISECONDS,
        rpId=settings().passkey_domain,
        allowCredentials=[],
        userVerification="required",
    )
