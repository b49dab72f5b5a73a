"""Sealing what must be read again."""

import pytest
from cryptography.exceptions import InvalidTag

from shared.identity.encryption import keyed_hash, seal, unseal
from shared.runtime.settings import settings

pytestmark = pytest.mark.no_service


def test_what_is_sealed_is_opened_again_and_cannot_be_read_before() -> None:
    sealed = seal("test", b"a secret of a second factor", b"owner")
    assert b"secret" not in sealed
    assert unseal("test", sealed, b"owner") == b"a secret of a second factor"


def test_the_same_content_is_sealed_differently_each_time() -> None:
    assert seal("test", b"content", b"owner") != seal("test", b"content", b"owner")


@pytest.mark.parametrize(("purpose", "owner"), [("another", b"owner"), ("test", b"another"), ("test", b"")])
def test_it_opens_for_no_other_purpose_or_owner(purpose: str, owner: bytes) -> None:
    sealed = seal("test", b"content", b"owner")
    with pytest.raises(InvalidTag):
        unseal(purpose, sealed, owner)


@pytest.mark.parametrize("position", [0, 12, -1])
def test_what_was_altered_does_not_open(position: int) -> None:
    sealed = bytearray(seal("test", b"content", b"owner"))
    sealed[position] ^= 1
    with pytest.raises(InvalidTag):
        unseal("test", bytes(sealed), b"owner")


def test_what_was_cut_off_does_not_open() -> None:
    sealed = seal("test", b"content", b"owner")
    with pytest.raises(InvalidTag):
        unseal("test", sealed[:20], b"owner")


def test_a_keyed_hash_is_stable_and_depends_on_purpose_content_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    first = keyed_hash("test", b"123456")
    assert len(first) == 32
    assert keyed_hash("test", b"123456") == first
    assert keyed_hash("test", b"123457") != first
    assert keyed_hash("another", b"123456") != first
    monkeypatch.setenv("ENCRYPTION_KEY", "another key of more than 32 characters")
    settings.cache_clear()
    assert keyed_hash("test", b"123456") != first
    monkeypatch.undo()
    settings.cache_clear()
