"""Phone numbers as people write them."""

import re

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.users.phone_numbers import normalize_phone_number

pytestmark = pytest.mark.no_service

MOBILE_EXAMPLES = [
    example
    for region in sorted(phonenumbers.SUPPORTED_REGIONS)
    if (example := phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE))
]


@pytest.mark.parametrize(
    "text",
    [
        "010-1234-5678",
        "010 1234 5678",
        "01012345678",
        "+82 10-1234-5678",
        "+82 (0)10 1234 5678",
        "+821012345678",
        " 010-1234-5678\n",
        "010\N{NO-BREAK SPACE}1234\N{NO-BREAK SPACE}5678",
        "０１０－１２３４－５６７８",
        "＋８２（０）１０　１２３４　５６７８",
        "010‑1234–5678",
        "010ー1234ー5678",
        "\N{LEFT-TO-RIGHT EMBEDDING}+82 10 1234 5678\N{POP DIRECTIONAL FORMATTING}",
    ],
)
def test_a_korean_number_may_be_written_in_many_ways(text: str) -> None:
    assert normalize_phone_number(text) == "+821012345678"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "112",
        "02-123-4567",  # fixed-line
        "060-700-1234",  # premium-rate
        "070-1234-5678",  # voice over IP
        "1644-9999",  # shared cost
        "080-123-4567",  # toll-free
        "+1 900 555 0123",  # premium-rate, abroad
        "010-1234-567890",
        "+999 1234 5678",
        "call 010-1234-5678",
        "010-1234-5678 ext. 5",
        "010-1234-5678;ext=5",
        "tel:+82-10-1234-5678",
        "٠١٠-١٢٣٤-٥٦٧٨",
        "+",
    ],
)
def test_what_gets_no_texts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="phone"):
        normalize_phone_number(text)


@given(
    st.from_regex(r"10[2-46-9][0-9]{7}", fullmatch=True),
    st.sampled_from(["0", "+82", "+82 ", "+82-", "+820", "+82 (0)"]),
    st.sampled_from(["", "-", " ", ".", ") "]),
)
def test_prefix_and_separators_make_no_difference(number: str, prefix: str, separator: str) -> None:
    written = prefix + separator.join((number[:2], number[2:6], number[6:]))
    assert normalize_phone_number(written) == f"+82{number}"


@given(st.one_of(st.text(alphabet="0123456789+-() .", max_size=32), st.text(max_size=32)))
def test_any_text_is_refused_or_a_number_that_stays_itself(text: str) -> None:
    try:
        number = normalize_phone_number(text)
    except ValueError:
        return
    assert re.fullmatch(r"\+[1-9][0-9]{6,14}", number)
    assert normalize_phone_number(number) == number


@given(st.sampled_from(MOBILE_EXAMPLES), st.sampled_from([0, 1]))
def test_a_mobile_number_of_any_country_is_taken(example: phonenumbers.PhoneNumber, style: int) -> None:
    number = normalize_phone_number(phonenumbers.format_number(example, style))
    assert number == phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
    assert normalize_phone_number(number) == number
