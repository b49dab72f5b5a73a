"""What a request body may hold: strict, closed models, and the fields that several of them share."""

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
    """A JSON object that is taken as it is: no unknown members, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class QueryParameters(BaseModel):
    """The parameters of a query: text that is converted, and no unknown ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ABSENT: Any = Field(default_factory=lambda: None)
"""The default of a member of a patch: a plain one would be in the schema, as if it were applied."""


def normalize_email(address: str) -> str:
    """An address as it is kept and shown: the local part in NFC and as typed, the domain as Unicode has it.

    Raises:
        ValueError: the text is no e-mail address (RFC 5321, 5322, 6531).
    """
    local, domain, _ = _parsed_email(address)
    _refuse_disguised(local)
    return f"{local}@{domain}"


def canonical_email(address: str) -> str:
    """The form in which two spellings of one address are equal: the local part is folded, the domain is not.

    Two domains may differ in ß and ss alone, and have two owners (RFC 5894, 7.2).

    Raises:
        ValueError: the text is no e-mail address.
    """
    local, domain, _ = _parsed_email(address)
    _refuse_disguised(local)
    return f"{folded(local)}@{domain}"


def mailbox(address: str) -> str:
    """Where mail to a stored address goes: the local part in NFC, the domain in ASCII (IDNA)."""
    if address.isascii():
        return address
    local, _, ascii_domain = _parsed_email(address)
    return f"{local}@{ascii_domain}"


@lru_cache(maxsize=256)  # one request asks several times
def _parsed_email(address: str) -> tuple[str, str, str]:
    """Local part in NFC, domain as Unicode has it, domain in ASCII."""
    from email_validator import EmailNotValidError, validate_email

    try:
        parsed = validate_email(address.strip(), check_deliverability=False, allow_smtputf8=True)
    except EmailNotValidError:
        raise _not_an_email() from None
    return parsed.local_part, parsed.domain, parsed.ascii_domain or parsed.domain


def _refuse_disguised(local: str) -> None:
    """Refuses letters that stand for others (RFC 8264, 9.17): folded, they would name somebody else's mailbox."""
    if unicodedata.normalize("NFKC", local) != local or IGNORABLE.search(local):
        raise _not_an_email()


def _not_an_email() -> PydanticCustomError:
    return PydanticCustomError("email", "This is not an e-mail address.")


def _printable(text: str) -> str:
    if not is_printable(text):
        raise PydanticCustomError("text", "This has no visible characters, or some that cannot be shown.")
    return text


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _beginning(text: str) -> str:
    return _composed(text).lstrip()


def _on_text(normalize: Callable[[str], Any]) -> BeforeValidator:
    """Applies to text; what is none is refused by what follows."""
    return BeforeValidator(lambda value: normalize(value) if isinstance(value, str) else value)


def _language(tag: str) -> str:
    """The language of a tag (RFC 5646) such as en-US; systems write en_US as well."""
    return tag[:2].lower() if re.fullmatch(_LOCALE, tag) else tag


def _full_date(text: str) -> date:
    # Pydantic takes "0" and "1551657600" for dates as well.
    if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(text)
    raise PydanticCustomError("date", "Give a day of the calendar, written as 2019-03-04 (RFC 3339).")


def to_uuid(text: str) -> UUID:
    """An id in the form that RFC 9562 has for text.

    Raises:
        PydanticCustomError: it has another; a ValueError.
    """
    # Pydantic takes URNs, braces and text without dashes as well.
    if re.fullmatch("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text):
        return UUID(text)
    raise PydanticCustomError("uuid_parsing", "Write an id as RFC 9562 has it.")


_LOCALE = "([Kk][Oo]|[Ee][Nn])([-_][A-Za-z0-9]{1,8}){0,7}"

EmailAddress = Annotated[
    str,
    StringConstraints(max_length=254),
    AfterValidator(normalize_email),
    Field(
        description="An e-mail address. Case does not matter; it is kept as typed, in Unicode's composed form.",
        examples=["kim@example.com"],
    ),
]
Name = Annotated[
    str,
    _on_text(normalize_name),
    StringConstraints(max_length=100),
    AfterValidator(_printable),
    Field(description="Kept in Unicode's composed form, without space around it.", examples=["김민준"]),
]
Prefix = Annotated[
    str, _on_text(_beginning), StringConstraints(min_length=1, max_length=254), AfterValidator(_printable)
]
"""The beginning of a text that is searched for."""
FullDate = Annotated[date, _on_text(_full_date)]
"""A date, in no other form than RFC 3339's full-date."""
Uuid = Annotated[UUID, _on_text(to_uuid)]
"""An id, in no other form than RFC 9562 has for text."""
Locale = Annotated[
    Literal["ko", "en"],
    _on_text(_language),
    WithJsonSchema({"type": "string", "pattern": f"^{_LOCALE}$"}),
    Field(description="The language of mails to the user: ko or en, also as in en-US.", examples=["ko"]),
]
Password = Annotated[
    SecretStr, _on_text(_composed), Field(min_length=1, max_length=256, examples=["copper lantern drifts north"])
]
NewPassword = Annotated[
    SecretStr,
    _on_text(_composed),
    Field(
        min_length=1,  # `check_acceptable` counts characters after normalization, and says what is wrong
        max_length=256,
        description="Any Unicode characters, at least 15 (NIST SP 800-63B-4); verified as a whole.",
        examples=["copper lantern drifts north"],
    ),
]
OpaqueToken = Annotated[SecretStr, Field(min_length=43, max_length=43, examples=["A" * 43])]
