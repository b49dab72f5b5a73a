"""Addresses that lead to one mailbox."""

import pytest

from shared.text.mailboxes import counted_mailbox

pytestmark = pytest.mark.no_service


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kim@example.com", "KIM+shop@example.com"),
        ("kim@example.com", "kim+a+b@example.com"),
        ("kim.minjun@gmail.com", "kimminjun@gmail.com"),
        ("kimminjun@gmail.com", "k.i.m.minjun+1@googlemail.com"),
        ("kim_min-jun@proton.me", "kimminjun+x@protonmail.com"),
    ],
)
def test_what_the_provider_takes_for_one_mailbox_is_counted_as_one(one: str, other: str) -> None:
    assert counted_mailbox(one) == counted_mailbox(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kim.minjun@example.com", "kimminjun@example.com"),
        ("kim-shop@example.com", "kim@example.com"),
        ("+1@example.com", "+2@example.com"),
        ("kim@gmail.com", "kim@example.com"),
    ],
)
def test_what_may_be_two_mailboxes_is_counted_as_two(one: str, other: str) -> None:
    assert counted_mailbox(one) != counted_mailbox(other)
