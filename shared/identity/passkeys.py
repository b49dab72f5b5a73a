"""Passkeys: the code that registration and login share (WebAuthn Level 3)."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from shared.identity import challenges
from shared.runtime.problems import Problem
from shared.runtime.settings import settings
from shared.text.fields import RequestBody

if TYPE_CHECKING:
    from webauthn.authentication.verify_authentication_response import VerifiedAuthentication
    from webauthn.registration.verify_registration_response import VerifiedRegistration

MAX_PASSKEYS = 20
"""Per account."""
TIMEOUT_MILLISECONDS = int(challenges.LIFETIME.total_seconds() * 1000)
ALGORITHMS = (-7, -8, -257)
"""ES256, EdDSA, RS256 (COSE): the algorithms that authenticators support, shortest first."""

log = logging.getLogger(__name__)


class TooManyPasskeys(Problem):
    status = 409
    title = "The account has reached the limit of passkeys"
    detail = f"The limit is {MAX_PASSKEYS}. Remove one that is no longer used."


def _decodable(text: str) -> str:
    if len(text) % 4 == 1:
        raise PydanticCustomError("base64url", "This is not base64url.")
    return text


_ALPHABET = "^[A-Za-z0-9_-]+$"
_WHOLE_BYTES = AfterValidator(_decodable)
_DESCRIPTION = Field(description="base64url without padding")

CredentialId = Annotated[str, StringConstraints(pattern=_ALPHABET, max_length=1364), _WHOLE_BYTES, _DESCRIPTION]
"""At most 1023 bytes (WebAuthn, 7.1)."""
ShortBytes = Annotated[str, StringConstraints(pattern=_ALPHABET, max_length=4096), _WHOLE_BYTES, _DESCRIPTION]
LongBytes = Annotated[str, StringConstraints(pattern=_ALPHABET, max_length=16384), _WHOLE_BYTES, _DESCRIPTION]


class WebAuthnObject(RequestBody):
    """An object of WebAuthn's JSON, with WebAuthn's member names."""

    # Browsers may add members.
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class PublicKeyCredential(WebAuthnObject):
    """The result of `toJSON()` of a browser's PublicKeyCredential, without the authenticator's response."""

    id: CredentialId
    raw_id: CredentialId
    type: Literal["public-key"]
    client_extension_results: dict[str, Any]


class CredentialDescriptor(TypedDict):
    """PublicKeyCredentialDescriptorJSON (WebAuthn Level 3, 5.1.8)."""

    type: Literal["public-key"]
    id: str


def origins() -> list[str]:
    """Return the origins whose pages may use a passkey: PUBLIC_URL, and those that may call the API."""
    public = urlsplit(settings().public_url)
    return [f"{public.scheme}://{public.netloc}", *settings().cors_allowed_origins]


def challenge_in(client_data: bytes) -> bytes:
    """Return the challenge named in clientDataJSON. The caller must verify and spend it.

    Raises:
        ValueError: the page was in a frame of another site, which webauthn does not check (WebAuthn Level 3, 7.1 and
            7.2), or it is not client data.
    """
    from webauthn.helpers import parse_client_data_json

    data = json.loads(client_data)
    if data.get("crossOrigin", False) is not False or data.get("topOrigin") is not None:
        raise ValueError("the page was in a frame of another site")
    return parse_client_data_json(client_data).challenge


def is_backup_eligible(verified: "VerifiedRegistration | VerifiedAuthentication") -> bool:
    """Return whether a passkey can be synced to other devices: the BE flag, which never changes (WebAuthn 3, 6.1.3)."""
    return verified.credential_device_type == "multi_device"


@contextmanager
def refused_as(problem: type[Problem]) -> Iterator[None]:
    """Raise this problem instead of any error: on invalid input, webauthn and its parsers can raise anything."""
    try:
        yield
    except Exception as error:
        log.info("passkey refused", extra={"error": type(error).__name__, "reason": str(error)[:200]})
        raise problem from error
