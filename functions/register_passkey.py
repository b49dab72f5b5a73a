"""Register a passkey."""

from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from typing_extensions import TypedDict
from uuid_utils.compat import uuid7

from shared.events.outbox import announce
from shared.events.types import PasskeyRegistered
from shared.framework.http_function import http_function
from shared.identity import challenges, first_factor, passkeys, tokens
from shared.identity.access_tokens import Caller
from shared.identity.challenges import PASSKEY_REGISTRATION
from shared.identity.changes import change
from shared.identity.first_factor import FirstFactorCode, FirstFactorCodeRequired
from shared.identity.passkeys import LongBytes, PublicKeyCredential, ShortBytes, TooManyPasskeys, WebAuthnObject
from shared.postgresql.tables import passkey
from shared.runtime.problems import Problem
from shared.runtime.settings import settings
from shared.text.fields import ABSENT, Name, RequestBody
from shared.text.formats import TimeText, UuidText

Transport = Annotated[str, Field(max_length=32)]


class AttestationResponse(WebAuthnObject):
    client_data_json: Annotated[ShortBytes, Field(alias="clientDataJSON")]
    attestation_object: LongBytes
    transports: Annotated[list[Transport], Field(max_length=16)] | None = None
    authenticator_data: LongBytes | None = None
    public_key: LongBytes | None = None
    public_key_algorithm: int | None = None


class NewCredential(PublicKeyCredential):
    """RegistrationResponseJSON (WebAuthn Level 3, 5.1.7)."""

    response: AttestationResponse


EXAMPLE = {
    "id": "bXkgcGFzc2tleQ",
    "rawId": "bXkgcGFzc2tleQ",
    "type": "public-key",
    "response": {"clientDataJSON": "e30", "attestationObject": "oA", "transports": ["internal"]},
    "clientExtensionResults": {},
}


class PasskeyRegistration(RequestBody):
    name: Name
    credential: Annotated[NewCredential, Field(examples=[EXAMPLE])]
    first_factor_code: FirstFactorCode = ABSENT


class RegisteredPasskey(TypedDict):
    id: UuidText
    name: str
    created_at: TimeText


class PasskeyNotVerified(Problem):
    status = 422
    title = "The passkey could not be verified"
    detail = "It is for another site, does not verify its user, or its challenge has expired. Request new options."


class PasskeyAlreadyRegistered(Problem):
    status = 409
    title = "The passkey is already registered"
    detail = "Nothing was changed."


@http_function(
    "POST",
    "/api/v1/users/me/passkeys",
    status=201,
    recent_login=True,
    problems=[PasskeyNotVerified, PasskeyAlreadyRegistered, TooManyPasskeys, FirstFactorCodeRequired],
)
def register_passkey(body: PasskeyRegistration, caller: Caller) -> RegisteredPasskey:
    """Register a passkey.

    `credential` is the result of `toJSON()` on the browser's new credential, for options requested from
    /api/v1/users/me/passkeys/options within the last five minutes. `name` helps the user recognize the passkey. An
    account can have 20. If the account has a role and no factor yet, `first_factor_code` is required.
    """
    passkey_id, user_id = uuid7(), caller.user_id
    with change(caller) as connection:
        # Only now, so that a caller who may not add a passkey gets that error first.
        with passkeys.refused_as(PasskeyNotVerified):
            challenge, new = _verified(body.credential)
        add = (
            insert(passkey)
            .values(id=passkey_id, account_id=user_id, name=body.name, **new)
            .on_conflict_do_nothing(index_elements=["credential_id"])
            .returning(passkey.c.created_at)
        )
        first_factor.require_code(connection, caller, body.first_factor_code)
        if not challenges.spend(connection, challenge, PASSKEY_REGISTRATION, user_id):
            raise PasskeyNotVerified
        count = select(func.count()).select_from(passkey).where(passkey.c.account_id == user_id)
        if connection.execute(count).scalar_one() >= passkeys.MAX_PASSKEYS:
            raise TooManyPasskeys
        created_at = connection.scalar(add)
        if created_at is None:
            raise PasskeyAlreadyRegistered
        announce(connection, PasskeyRegistered(user_id=user_id, passkey_id=passkey_id))
    return RegisteredPasskey(id=str(passkey_id), name=body.name, created_at=created_at.isoformat())


def _verified(credential: NewCredential) -> tuple[str, dict[str, Any]]:
    """Return the challenge that a new credential answers, and the columns to store.

    Raises any error of webauthn if the credential does not match the options.
    """
    from webauthn import verify_registration_response
    from webauthn.helpers import decode_credential_public_key, decoded_public_key_to_cryptography
    from webauthn.helpers.cose import COSEAlgorithmIdentifier

    challenge = passkeys.challenge_in(tokens.decode(credential.response.client_data_json))
    verified = verify_registration_response(
        credential=credential.model_dump(by_alias=True, exclude_none=True),
        expected_challenge=challenge,
        expected_rp_id=settings().passkey_domain,
        expected_origin=passkeys.origins(),
        require_user_verification=True,
        supported_pub_key_algs=[COSEAlgorithmIdentifier(number) for number in passkeys.ALGORITHMS],
    )
    if verified.credential_id != tokens.decode(credential.raw_id):
        raise ValueError("the credential ids of the authenticator and the browser differ")
    # webauthn parses the key only at the first log-in, too late to reject an invalid one.
    decoded_public_key_to_cryptography(decode_credential_public_key(verified.credential_public_key))
    return tokens.encode(challenge), {
        "credential_id": verified.credential_id,
        "public_key": verified.credential_public_key,
        "sign_count": verified.sign_count,
        "backup_eligible": passkeys.is_backup_eligible(verified),
    }
