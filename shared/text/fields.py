"""Strict models for bodies and queries that reject unknown fields, and the fields that several of them share."""

import contextlib
import re
import unicodedata
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from shared.text.normalisation import IGNORABLE, folded, is_printable, normalize_name


class RequestBody(BaseModel):
    """A JSON object: unknown members are rejected, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class QueryParameters(BaseModel):
    """The parameters of a query: unknown ones are rejected, and text is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ABSENT: Any = Field(default_factory=lambda: None)
"""The default of an optional member. A plain default would be in the schema, as if it were applied."""


def normalize_email(address: str) -> str:
    """Return an address as it is stored and shown: the local part as typed, in NFC, and the domain in Unicode.

    Raises:
        ValueError: the text is not an e-mail address (RFC 5321, 5322, 6531).
    """
    local, domain, _ = _parsed_email(address)
    _refuse_disguised(local)
    return f"{local}@{domain}"


def canonical_email(address: str) -> str:
    """Return the form in which two spellings of an address are equal: the local part is folded, the domain is not.

    Two domains that differ only in ß and ss can have different owners (RFC 5894, 7.2).

    Raises:
        ValueError: the text is not an e-mail address.
    """
    local, domain, _ = _parsed_email(address)
    _refuse_disguised(local)
    return f"{folded(local)}@{domain}"


def mailbox(address: str) -> str:
    """Return the form of a stored address that mail is sent to: the local part in NFC, the domain in ASCII (IDNA)."""
    if address.isascii():
        return address
    local, _, ascii_domain = _parsed_email(address)
    return f"{local}@{ascii_domain}"


@lru_cache(maxsize=256)  # one request asks several times
def _parsed_email(address: str) -> tuple[str, str, str]:
    """Return the local part in NFC, the domain in Unicode, and the domain in ASCII."""
    from email_validator import EmailNotValidError, validate_email

    try:
        parsed = validate_email(address.strip(), check_deliverability=False, allow_smtputf8=True)
    except EmailNotValidError:
        raise _not_an_email() from None
    return parsed.local_part, parsed.domain, parsed.ascii_domain or parsed.domain


def _refuse_disguised(local: str) -> None:
    """Reject compatibility and invisible characters (RFC 8264, 9.17): folded, they could name another mailbox."""
    if unicodedata.normalize("NFKC", local) != local or IGNORABLE.search(local):
        raise _not_an_email()


def _not_an_email() -> PydanticCustomError:
    return PydanticCustomError("email", "This is not an e-mail address.")


def _printable(text: str) -> str:
    if not is_printable(text):
        raise PydanticCustomError("text", "The text has no visible characters, or some that cannot be displayed.")
    return text


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _beginning(text: str) -> str:
    return _composed(text).lstrip()


def _on_text(normalize: Callable[[str], Any]) -> BeforeValidator:
    """Apply a function to text; later validation rejects other types."""
    return BeforeValidator(lambda value: normalize(value) if isinstance(value, str) else value)


def _language(tag: str) -> str:
    """Return the language of a tag (RFC 5646) such as en-US; some systems write en_US."""
    return tag[:2].lower() if re.fullmatch(_LOCALE, tag) else tag


def _full_date(text: str) -> date:
    # Pydantic also accepts "0" and "1551657600" as dates.
    if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(text)
    raise PydanticCustomError("date", "Enter an existing date such as 2019-03-04 (RFC 3339).")


def to_uuid(text: str) -> UUID:
    """Parse a UUID in the text form of RFC 9562.

    Raises:
        PydanticCustomError: the text has another form. This is a ValueError.
    """
    # Pydantic also accepts URNs, braces and text without dashes.
    if re.fullmatch("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text):
        return UUID(text)
    raise PydanticCustomError("uuid_parsing", "Enter a UUID in the text form of RFC 9562.")


_LOCALE = "([Kk][Oo]|[Ee][Nn])([-_][A-Za-z0-9]{1,8}){0,7}"

EmailAddress = Annotated[
    str,
    StringConstraints(max_length=254),
    AfterValidator(normalize_email),
    Field(
        description="An e-mail address. Case does not matter. Stored as typed, in Unicode NFC.",
        examples=["kim@example.com"],
    ),
]
Name = Annotated[
    str,
    _on_text(normalize_name),
    StringConstraints(max_length=100),
    AfterValidator(_printable),
    Field(description="Stored in Unicode NFC, without surrounding whitespace.", examples=["김민준"]),
]
Prefix = Annotated[
    str, _on_text(_beginning), StringConstraints(min_length=1, max_length=254), AfterValidator(_printable)
]
"""The beginning of a text to search for."""
FullDate = Annotated[date, _on_text(_full_date)]
"""A date, only as a full-date of RFC 3339."""
Uuid = Annotated[UUID, _on_text(to_uuid)]
"""A UUID, only in the text form of RFC 9562."""
Locale = Annotated[
    Literal["ko", "en"],
    _on_text(_language),
    WithJsonSchema({"type": "string", "pattern": f"^{_LOCALE}$"}),
    Field(description="The language of mails to the user: ko or en, or with a region, as in en-US.", examples=["ko"]),
]
Password = Annotated[
    SecretStr, _on_text(_composed), Field(min_length=1, max_length=256, examples=["copper lantern drifts north"])
]
NewPassword = Annotated[
    SecretStr,
    _on_text(_composed),
    Field(
        min_length=1,  # `check_acceptable` counts characters after normalization, with a better message
        max_length=256,
        description="At least 15 Unicode characters of any kind (NIST SP 800-63B-4), all of which are verified.",
        examples=["copper lantern drifts north"],
    ),
]
OpaqueToken = Annotated[SecretStr, Field(min_length=43, max_length=43, examples=["A" * 43])]
