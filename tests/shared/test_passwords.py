"""Password hashes and their bounds."""

import threading
import unicodedata

import pytest

from shared import passwords
from shared.passwords import hash_password, verify_password
from shared.problems import ServiceUnavailable
from tests.conftest import PASSWORD


def test_the_hash_is_argon2id_at_owasps_parameters() -> None:
    assert hash_password(PASSWORD).startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_a_password_is_verified_as_a_whole_and_exactly() -> None:
    stored = hash_password("x" * 200 + "a")
    assert verify_password(stored, "x" * 200 + "a")
    assert not verify_password(stored, "x" * 200 + "b")
    assert not verify_password(stored, "x" * 200)
    assert not verify_password(stored, ("x" * 200 + "a").upper())


def test_two_keyboards_type_one_korean_password() -> None:
    composed = "비밀번호는 길어야 안전하다"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    assert verify_password(hash_password(composed), decomposed)


def test_nobodys_hash_is_verified_at_the_same_parameters_and_never_right() -> None:
    assert passwords._unknown_hash().startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert not verify_password(None, PASSWORD)
    assert not verify_password("no hash at all", PASSWORD)


def test_beyond_the_bound_of_hashing_at_once_the_caller_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_slots", threading.BoundedSemaphore(1))
    monkeypatch.setattr(passwords, "_WAIT_SECONDS", 0.01)
    with passwords._slot(), pytest.raises(ServiceUnavailable):
        hash_password(PASSWORD)
    assert hash_password(PASSWORD)
