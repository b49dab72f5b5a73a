"""Business registration numbers as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.text.business_numbers import check_digit, normalize_business_number

pytestmark = pytest.mark.no_service

first_nine = st.builds(
    lambda office, kind, serial: f"{office:03}{kind:02}{serial:04}",
    st.integers(101, 999),
    st.integers(1, 99),
    st.integers(1, 9999),
)


def dashed(number: str) -> str:
    return f"{number[:3]}-{number[3:5]}-{number[5:]}"


@given(first_nine, st.integers(0, 9))
def test_dashes_make_no_difference(nine: str, last: int) -> None:
    number = f"{nine}{last}"
    assert normalize_business_number(dashed(number)) == normalize_business_number(number) == number


@given(first_nine)
def test_exactly_one_digit_fits_nine_others(nine: str) -> None:
    digits = [int(digit) for digit in nine + check_digit(nine)]
    total = sum(digit * weight for digit, weight in zip(digits, (1, 3, 7, 1, 3, 7, 1, 3, 5, 1), strict=True))
    assert (total + digits[8] * 5 // 10) % 10 == 0


@given(first_nine, st.integers(0, 7), st.integers(1, 9))
def test_one_wrong_digit_is_seen(nine: str, position: int, change: int) -> None:
    wrong = nine[:position] + str((int(nine[position]) + change) % 10) + nine[position + 1 :]
    assert check_digit(wrong) != check_digit(nine)


@pytest.mark.parametrize("number", ["124-81-00998", "120-88-00767", "220-81-62517"])
def test_the_numbers_of_well_known_companies_fit(number: str) -> None:
    digits = normalize_business_number(number)
    assert check_digit(digits[:-1]) == digits[-1]


@pytest.mark.parametrize(
    "text", [" 124-81-00998", "124-81-00998\n", "124–81–00998", "１２４－８１－００９９８", "\u00a01248100998\u200b"]
)
def test_a_number_may_be_pasted_with_what_stands_around_it(text: str) -> None:
    assert normalize_business_number(text) == "1248100998"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0000000000",
        "000-81-00998",
        "100-81-00998",  # no such tax office
        "124-00-00998",
        "124-81-00008",
        "12481009981",
        "124810099",
        "124-8100998",
        "1248-1-00998",
        "12-481-00998",
        "124 81 00998",
        "124-81-0099X",
        "124-81-٠٠٩٩٨",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|digits"):
        normalize_business_number(text)


@given(st.text(max_size=14))
def test_any_text_is_refused_or_ten_digits(text: str) -> None:
    try:
        number = normalize_business_number(text)
    except ValueError:
        return
    assert len(number) == 10
    assert number.isascii()
    assert number.isdigit()
