"""Cursors of pages."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.framework.pages import decode, encode

pytestmark = pytest.mark.no_service


@given(st.uuids())
def test_a_cursor_leads_back_to_its_id(last: uuid.UUID) -> None:
    cursor = encode(last)
    assert decode(cursor) == last
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&?#% ")


@given(st.one_of(st.text(), st.text("AZaz09_-=", min_size=30, max_size=34)))
def test_nothing_else_is_a_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="The cursor is not valid"):
        decode(text)


@given(
    st.uuids(),
    st.integers(0, 31),
    st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=\n"),
)
def test_a_cursor_with_another_character_is_none(last: uuid.UUID, place: int, character: str) -> None:
    cursor = encode(last)
    altered = cursor[:place] + character + cursor[place + 1 :]
    if altered != cursor:
        with pytest.raises(ValueError, match="The cursor is not valid"):
            decode(altered)
