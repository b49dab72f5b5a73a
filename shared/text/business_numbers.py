"""Korean business registration numbers (사업자등록번호): tax office, kind of business, serial number, check digit."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from shared.text.normalisation import plain

_WEIGHTS = (1, 3, 7, 1, 3, 7, 1, 3, 5)
_FIRST_OFFICE = 101


def normalize_business_number(text: str) -> str:
    """Return the ten digits of a number that is written with dashes (000-00-00000) or without.

    Raises:
        ValueError: the format is wrong, or no business can have this number.
    """
    parts = re.fullmatch(r"([0-9]{3})(-?)([0-9]{2})\2([0-9]{4})([0-9])", plain(text))
    if not parts:
        raise PydanticCustomError("business_number", "Enter ten digits, as 000-00-00000 or without dashes.")
    office, _, kind, serial, check = parts.groups()
    if int(office) < _FIRST_OFFICE or int(kind) == 0 or int(serial) == 0:
        raise PydanticCustomError("business_number", "No business can have this number.")
    return office + kind + serial + check


def check_digit(first_nine: str) -> str:
    """Return the tenth digit for the first nine. About 0.7 % of the numbers in use have another one, so only warn."""
    digits = [int(digit) for digit in first_nine]
    total = sum(digit * weight for digit, weight in zip(digits, _WEIGHTS, strict=True)) + digits[-1] * 5 // 10
    return str(-total % 10)


BusinessNumber = Annotated[
    str,
    StringConstraints(max_length=32),
    AfterValidator(normalize_business_number),
    Field(description="Ten digits, with or without dashes.", examples=["124-81-00998"]),
]
