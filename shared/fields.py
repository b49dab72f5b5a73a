"""What a request body may hold: strict, closed models, and the fields that several of them share."""

import unicodedata
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_core import PydanticCustomError


class RequestBody(BaseModel):
    """A JSON object that is taken as it is: no unknown members, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class QueryParameters(BaseModel):
    """The parameters of a query: text that is converted, and no unknown ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ABSENT: Any = Field(default_factory=lambda: None)
"""The default of a member of a patch: a plain one would be in the schema, as if it were applied."""


def _email_address(text: str) -> str:
    canonical_email(text)
    return text


@lru_cache(maxsize=256)  # one request asks several times
def canonical_email(address: str) -> str:
    """The form in which two spellings of one address are equal: domain in IDNA form, both parts in lower case.

    Raises:
        ValueError: the text is no e-mail address (RFC 5321, 5322, 6531).
    """
    from email_validator import EmailNotValidError, validate_email

    try:
        address = validate_email(address, check_deliverability=False, allow_smtputf8=True).normalized
    except EmailNotValidError:
        raise PydanticCustomError("email", "This is not an e-mail address.") from None
    return address.lower()


_JOINERS = "\u200c\u200d"
"""Invisible, but part of how some languages and emoji are written."""


def _printable(text: str) -> str:
    categories = [unicodedata.category(character) for character in text if character not in _JOINERS]
    if any(category[0] == "C" for category in categories) or all(category[0] == "Z" for category in categories):
        raise PydanticCustomError("text", "This has no visible characters, or some that cannot be shown.")
    return text


EmailAddress = Annotated[
    str,
    StringConstraints(max_length=254),
    AfterValidator(_email_address),
    Field(description="An e-mail address; compared case-insensitively, kept as typed.", examples=["kim@example.com"]),
]
Name = Annotated[str, StringConstraints(max_length=100), AfterValidator(_printable), Field(examples=["김민준"])]
Prefix = Annotated[str, StringConstraints(min_length=1, max_length=254), AfterValidator(_printable)]
"""The beginning of a text that is searched for."""
Locale = Annotated[Literal["ko", "en"], Field(description="The language of mails to the user.")]
Password = Annotated[SecretStr, Field(min_length=1, max_length=256, examples=["correct horse battery staple"])]
NewPassword = Annotated[
    SecretStr,
    Field(
        min_length=1,  # `check_acceptable` counts characters after normalization, and says what is wrong
        max_length=256,
        description="Any Unicode characters, at least 15 (NIST SP 800-63B-4); verified as a whole.",
        examples=["correct horse battery staple"],
    ),
]
OpaqueToken = Annotated[SecretStr, Field(min_length=43, max_length=43, examples=["A" * 43])]
