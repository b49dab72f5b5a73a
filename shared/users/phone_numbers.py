"""Phone numbers, accepted as people write them and stored in E.164, and the codes that verify them."""

import re
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from shared.identity.encryption import keyed_hash
from shared.runtime.settings import settings
from shared.text.normalisation import plain

DEFAULT_REGION = "KR"
"""The region of a number without a country code."""


def normalize_phone_number(text: str) -> str:
    """Return the E.164 form of a number that can receive texts: +821012345678 for 010-1234-5678.

    Raises:
        ValueError: it is not a phone number, or of a kind that receives no texts (such as fixed-line or premium-rate).
    """
    # Imported only if needed, because its tables are large.
    from phonenumbers import (
        NumberParseException,
        PhoneNumberFormat,
        PhoneNumberType,
        format_number,
        is_valid_number,
        number_type,
        parse,
    )

    try:
        written = plain(text)
        # The parser would find a number inside other text.
        number = parse(written, DEFAULT_REGION) if re.fullmatch(r"[0-9+(). -]+", written) else None
    except NumberParseException:
        number = None
    if number is None or not is_valid_number(number):
        raise PydanticCustomError("phone", "This is not a phone number.")
    if number_type(number) not in (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE):
        raise PydanticCustomError("phone", "This number cannot receive text messages. Enter a mobile phone number.")
    return format_number(number, PhoneNumberFormat.E164)


def check_region(number: str) -> str:
    """Return the number if texts are sent to its region. Satellite numbers have no region.

    Raises:
        ValueError: its region is not in SMS_REGIONS.
    """
    from phonenumbers import parse, region_code_for_number

    if region_code_for_number(parse(number)) not in settings().sms_regions:
        raise PydanticCustomError("phone_region", "Text messages are not sent to numbers of this country or region.")
    return number


def hash_phone_code(user_id: UUID, code: str) -> bytes:
    """Return the stored form of a code."""
    return keyed_hash("phone code", user_id.bytes + code.encode())


PhoneNumber = Annotated[
    str,
    StringConstraints(max_length=32),
    AfterValidator(normalize_phone_number),
    Field(description="In E.164, or as written in Korea.", examples=["010-1234-5678", "+821012345678"]),
]
TextablePhoneNumber = Annotated[PhoneNumber, AfterValidator(check_region)]
"""A phone number in one of the regions of SMS_REGIONS."""
