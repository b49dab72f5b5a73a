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
"""RFC 8176, 2: proof of possession of a key, user presence, and a PIN, fingerprint or face as another factor."""


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
    detail = "It is unknown, not verified, or its challenge has expired. Request new options, or log in another way."
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

    `credential` is the result of `toJSON()` on the browser's credential, for options requested from
    /api/v1/users/login/passkey/options within the last five minutes. Starts a session, like the log-in with a
    password. No second factor is required, because using a passkey already takes a PIN, a fingerprint or a face.
    """
    credential = body.credential
    # Locked, the account first as always, so that the second of two concurrent uses sees the counter of the first.
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
    """Return the challenge that a credential answers, and the columns to update.

    The signature counter must have increased, unless the passkey has none.

    Raises any error of webauthn if the passkey's owner did not sign this challenge for this site.
    """
    from webauthn import verify_authentication_response

    if decode(credential.response.user_handle) != known.account_id.bytes:
        raise ValueError("the user handle belongs to another account")
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
        raise ValueError("the backup eligibility of the passkey has changed")  # WebAuthn Level 3, 7.2
    return encode(challenge), {"sign_count": verified.new_sign_count, "backup_eligible": backup_eligible}
