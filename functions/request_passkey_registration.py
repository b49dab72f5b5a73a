"""Request the options for creating a passkey."""

from typing import Literal

from sqlalchemy import select
from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.identity import challenges, passkeys, tokens
from shared.identity.access_tokens import Caller
from shared.identity.challenges import PASSKEY_REGISTRATION
from shared.identity.changes import change
from shared.identity.passkeys import CredentialDescriptor, TooManyPasskeys
from shared.postgresql.tables import account, passkey
from shared.runtime.settings import settings


class RelyingParty(TypedDict):
    id: str
    name: str


class UserEntity(TypedDict):
    id: str
    name: str
    displayName: str


class CredentialParameters(TypedDict):
    type: Literal["public-key"]
    alg: int


class AuthenticatorSelection(TypedDict):
    residentKey: Literal["required"]
    requireResidentKey: bool
    userVerification: Literal["required"]


class PasskeyCreationOptions(TypedDict):
    """PublicKeyCredentialCreationOptionsJSON (WebAuthn Level 3, 5.1.8)."""

    rp: RelyingParty
    user: UserEntity
    challenge: str
    pubKeyCredParams: list[CredentialParameters]
    timeout: int
    excludeCredentials: list[CredentialDescriptor]
    authenticatorSelection: AuthenticatorSelection
    attestation: Literal["none"]


@http_function(
    "POST",
    "/api/v1/users/me/passkeys/options",
    recent_login=True,
    problems=[TooManyPasskeys],
)
def request_passkey_registration(caller: Caller) -> PasskeyCreationOptions:
    """Request the options for creating a passkey.

    Pass the response to `PublicKeyCredential.parseCreationOptionsFromJSON`, and the result to
    `navigator.credentials.create`. Send the credential to /api/v1/users/me/passkeys within five minutes. The passkey is
    discoverable and requires a PIN, a fingerprint or a face.
    """
    with_passkeys = (
        select(account.c.email, account.c.name, passkey.c.credential_id)
        .select_from(account.outerjoin(passkey))
        .where(account.c.id == caller.user_id)
    )
    with change(caller) as connection:
        rows = connection.execute(with_passkeys).all()
        known = [row.credential_id for row in rows if row.credential_id]
        if len(known) >= passkeys.MAX_PASSKEYS:
            raise TooManyPasskeys
        challenge = challenges.create(connection, PASSKEY_REGISTRATION, caller.user_id)
    user = rows[0]
    return PasskeyCreationOptions(
        rp=RelyingParty(id=settings().passkey_domain, name="Aegis"),
        user=UserEntity(id=tokens.encode(caller.user_id.bytes), name=user.email, displayName=user.name or user.email),
        challenge=challenge,
        pubKeyCredParams=[CredentialParameters(type="public-key", alg=number) for number in passkeys.ALGORITHMS],
        timeout=passkeys.TIMEOUT_MILLISECONDS,
        excludeCredentials=[CredentialDescriptor(type="public-key", id=tokens.encode(each)) for each in known],
        authenticatorSelection=AuthenticatorSelection(
            residentKey="required", requireResidentKey=True, userVerification="required"
        ),
        attestation="none",
    )
