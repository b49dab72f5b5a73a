"""Log in with a passkey."""

from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import Row, func, select, update

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.http.clients import Client
from shared.identity import challenges, passkeys, sessions
from shared.identity.challenges import PASSKEY_LOGIN
from shared.identity.passkeys import LongBytes, PublicKeyCredential, ShortBytes, WebAuthnObject
from shared.identity.sessions import TokenPair
from shared.identity.tokens import decode, encode
from shared.postgresql.tables import account, passkey
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.runtime.problems import Problem
from shared.runtime.settings import settings
from shared.text.fields import RequestBody

AMR = ["pop", "user", "mfa"]
"""RFC 8176, 2: possession of a key was proved, by a user who was present, with a PIN, finger or face beside it."""


class AssertionResponse(WebAuthnObject):
    client_data_json: Annotated[ShortBytes, Field(alias="clientDataJSON")]
    authenticator_data: ShortBytes
    signature: ShortBytes
    user_handle: ShortBytes
    attestation_object: LongBytes | None = None


class UsedCredential(PublicKeyCredential):
    """AuthenticationResponseJSON (WebAuthn Level 3, 5.1.7)."""

    response: AssertionResponse


EXAMPLE = {
    "id": "bXkgcGFzc2tleQ",
    "rawId": "bXkgcGFzc2tleQ",
    "type": "public-key",
    "response": {
        "clientDataJSON": "e30",
        "authenticatorData": "AA",
        "signature": "AA",
        "userHandle": "AZCKXayWd0u8zrMCCpmAVw",
    },
    "clientExtensionResults": {},
}


class PasskeyLogin(RequestBody):
    credential: Annotated[UsedCredential, Field(examples=[EXAMPLE])]


class InvalidPasskey(Problem):
    status = 401
    title = "The passkey cannot be used to log in"
    detail = "It is unknown here, was not verified, or its challenge is over. Ask for new options, or log in otherwise."
    authenticate = "Bearer"


@http_function(
    "POST",
    "/api/v1/users/login/passkey",
    scaling=Scaling("database", max_pods=3),  # a third of login's, as there is no password to hash
    uses=["token_signing", "refresh_tokens"],
    problems=[InvalidPasskey],
)
def login_with_passkey(body: PasskeyLogin, client: Client) -> TokenPair:
    """Log in with a passkey.

    `credential` is what `toJSON()` of the browser's credential says, for the options that
    /api/v1/users/login/passkey/options gave within the last five minutes. Starts a session as the log-in with a
    password does. A passkey is something the user has, and takes a PIN, a finger or a face: no second factor is
    asked for beside it.
    """
    credential = body.credential
    # Locked, the account first as always: of two uses at once the second compares its counter with the first's.
    with_owner = (
        select(*passkey.c["id", "account_id", "public_key", "sign_count", "backup_eligible"])
        .select_from(account.join(passkey))
        .where(passkey.c.credential_id == decode(credential.raw_id))
        .with_for_update(key_share=True)
    )
    with transaction() as connection:
        found = connection.execute(with_owner).first()
        if found is None:
            raise InvalidPasskey
        logs.user_id.set(str(found.account_id))
        with passkeys.refused_as(InvalidPasskey):
            challenge, state = _verified(credential, found)
        if not challenges.spend(connection, challenge, PASSKEY_LOGIN):
            raise InvalidPasskey
        connection.execute(update(passkey).where(passkey.c.id == found.id).values(**state, last_used_at=func.now()))
        tokens = sessions.log_in(connection, found.account_id, AMR, client)
        if tokens is None:
            raise InvalidPasskey
    return tokens


def _verified(credential: UsedCredential, known: Row[Any]) -> tuple[str, dict[str, Any]]:
    """The challenge that a credential answers, and what is stored of it from now on.

    Its signature counter must have gone up, unless it has none.

    Raises whatever webauthn does, for an answer that the passkey's owner did not give here.
    """
    from webauthn import verify_authentication_response

    if decode(credential.response.user_handle) != known.account_id.bytes:
        raise ValueError("the user handle is another account's")
    challenge = passkeys.challenge_in(decode(credential.response.client_data_json))
    verified = verify_authentication_response(
        credential=credential.model_dump(by_alias=True, exclude_none=True),
        expected_challenge=challenge,
        expected_rp_id=settings().passkey_domain,
        expected_origin=passkeys.origins(),
        credential_public_key=known.public_key,
        credential_current_sign_count=known.sign_count,
        require_user_verification=True,
    )
    backup_eligible = passkeys.is_backup_eligible(verified)
    if known.backup_eligible not in (None, backup_eligible):
        raise ValueError("whether the passkey may be backed up has changed")  # WebAuthn Level 3, 7.2
    return encode(challenge), {"sign_count": verified.new_sign_count, "backup_eligible": backup_eligible}
