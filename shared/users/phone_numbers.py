"""Phone numbers: taken as people write them, stored in E.164; and the codes that prove whose they are."""

import re
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from shared.identity.encryption import keyed_hash
from shared.runtime.settings import settings
from shared.text.normalisation import plain

DEFAULT_REGION = "KR"
"""Where a number is called from that states no country."""


def normalize_phone_number(text: str) -> str:
    """The E.164 form of a number that can get texts: 010-1234-5678 is +821012345678.

    Raises:
        ValueError: it is no phone number, or of a kind that gets no texts (such as fixed-line or premium-rate).
    """
    # Imported for those who give a number: its tables are large.
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
        # The parser would find a number in any text around it.
        number = parse(written, DEFAULT_REGION) if re.fullmatch(r"[0-9+(). -]+", written) else None
    except NumberParseException:
        number = None
    if number is None or not is_valid_number(number):
        raise PydanticCustomError("phone", "This is not a phone number.")
    if number_type(number) not in (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE):
        raise PydanticCustomError("phone", "This number cannot get text messages; give that of a mobile phone.")
    return format_number(number, PhoneNumberFormat.E164)


def check_region(number: str) -> str:
    """The number, where texts go to its region. The numbers of satellites are of none.

    Raises:
        ValueError: SMS_REGIONS does not name its region.
    """
    from phonenumbers import parse, region_code_for_number

    if region_code_for_number(parse(number)) not in settings().sms_regions:
        raise PydanticCustomError("phone_region", "Text messages are not sent to numbers of this country or region.")
    return number


def hash_phone_code(user_id: UUID, code: str) -> bytes:
    """What is stored of a code."""
    return keyed_hash("phone code", user_id.bytes + code.encode())


PhoneNumber = Annotated[
    str,
    StringConstraints(max_length=32),
    AfterValidator(normalize_phone_number),
    Field(description="In E.164, or as it is written in Korea.", examples=["010-1234-5678", "+821012345678"]),
]
TextablePhoneNumber = Annotated[PhoneNumber, AfterValidator(check_region)]
"""A phone number in one of the regions of SMS_REGIONS."""
