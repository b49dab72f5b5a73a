"""Text as people write it, in every script."""

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from shared.text.fields import canonical_email, mailbox, normalize_email
from shared.text.normalisation import folded, is_printable, normalize_name, plain

pytestmark = pytest.mark.no_service

texts = st.text(max_size=12)
FILLERS = "\u3164\u115f\u1160\uffa0\u2800"
"""Letters and a symbol that are drawn as nothing."""
local_parts = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=12)


@given(texts)
def test_folding_makes_no_difference_between_cases_and_compositions(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    for form in ("NFC", "NFD"):
        assert folded(unicodedata.normalize(form, text)) == folded(text)
    assert folded(text.lower()) == folded(text.casefold()) == folded(text)


def address_of(local: str) -> str:
    """An address with this local part; examples that are none are passed over."""
    address = f"{local}@example.com"
    try:
        canonical_email(address)
    except ValueError:
        assume(False)
    return address


@settings_of_hypothesis(max_examples=60)
@given(local_parts)
def test_an_address_in_capitals_or_decomposed_is_the_same(local: str) -> None:
    address = address_of(local)
    kept = normalize_email(address)
    assert canonical_email(kept) == canonical_email(address) == canonical_email(unicodedata.normalize("NFD", address))
    if "ı" not in local:  # Turkish: its capital is that of another letter
        assert canonical_email(f"{local.upper()}@EXAMPLE.COM") == canonical_email(address)


@settings_of_hypothesis(max_examples=60)
@given(local_parts)
def test_what_is_kept_is_what_was_proved(local: str) -> None:
    kept = normalize_email(address_of(local))
    assert normalize_email(kept) == mailbox(kept) == kept


@settings_of_hypothesis(max_examples=60)
@given(st.text(st.characters(categories=["L", "N", "S"]), min_size=1, max_size=8), st.sampled_from("iksfmKS5"))
def test_no_foreign_letter_stands_for_an_ascii_one(local: str, letter: str) -> None:
    """Or who has the one mailbox would own the address of the other; but for ß, which is SS in capitals."""
    address = address_of(letter + local)
    if canonical_email(address).isascii() and "ß" not in address.lower():
        assert normalize_email(address).isascii()


@given(texts)
def test_a_name_that_is_taken_stays_itself(text: str) -> None:
    name = normalize_name(text)
    assert normalize_name(name) == name
    assert is_printable(name) == is_printable(normalize_name(unicodedata.normalize("NFD", text)))


@given(st.text(st.characters(categories=["C", "Z", "M"], include_characters=FILLERS), max_size=6))
def test_what_nobody_can_see_is_no_name(text: str) -> None:
    assume(not any(unicodedata.category(character) == "Cn" for character in text))
    assert not is_printable(normalize_name(text))


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6))
def test_letters_of_any_script_are_a_name(text: str) -> None:
    assume(not set(text) & set(FILLERS + "\U0001d159"))
    assert is_printable(normalize_name(text))


@pytest.mark.parametrize("point", [0x1FAE8, 0x1FADF, 0x2EBF0, 0x11F04])
def test_a_character_that_is_newer_than_this_python_can_be_shown(point: int) -> None:
    assert is_printable(f"Kim {chr(point)}")


@pytest.mark.parametrize("point", [0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0x10FFFF, 0xFFF0, 0xE0080, 0xE000])
def test_what_no_font_has_cannot_be_shown(point: int) -> None:
    assert not is_printable(f"Kim {chr(point)}")


@given(st.text("0123456789- ", max_size=20), st.text("\u00a0\u2003\u3000\t\n \u200b\ufeff", max_size=3))
def test_a_plain_text_stays_itself_whatever_space_is_around_it(text: str, around: str) -> None:
    assert plain(around + text + around) == plain(text) == text.strip()
