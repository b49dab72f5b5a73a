"""Passwords: argon2id at OWASP's parameters, the rules of NIST SP 800-63B-4, and a bound on hashing at once."""

import base64
import os
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.problems import FieldError, InvalidRequest, ServiceUnavailable

MIN_LENGTH = 15
"""Unicode characters; a password is the only factor (NIST SP 800-63B-4, 3.1.1.2)."""

# OWASP Password Storage Cheat Sheet: 19 MiB, two passes, one lane; about 35 ms of one core.
_MEMORY_KIB, _PASSES, _LANES = 19456, 2, 1
_hasher = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES)

_WAIT_SECONDS = 2.0
_slots = threading.BoundedSemaphore(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)

_MIN_STRENGTH = 2
_STRENGTH_LENGTH = 32


def check_acceptable(password: str, *known: str | None, pointer: str = "/password") -> None:
    """Refuses a new password that is short, common, or made of what is known about the user.

    Args:
        known: address and name of the user.
        pointer: where in the request the password stands.

    Raises:
        InvalidRequest: with a fault at `pointer`.
        ServiceUnavailable: too many passwords are being checked or hashed already.
    """
    password = _normalized(password)
    if len(password) < MIN_LENGTH:
        raise InvalidRequest(errors=[_fault(pointer, f"A password has at least {MIN_LENGTH} characters.")])

    from zxcvbn import zxcvbn

    guessable = [part for text in known if text for part in (text, text.partition("@")[0])]
    with _slot():
        strength = zxcvbn(password[:_STRENGTH_LENGTH], user_inputs=["aegis", *guessable], max_length=_STRENGTH_LENGTH)
    if strength["score"] < _MIN_STRENGTH:
        raise InvalidRequest(
            errors=[
                _fault(pointer, "This password is common, or follows a pattern that is tried first. Choose another.")
            ]
        )


def hash_password(password: str) -> str:
    """The argon2id hash to store.

    Raises:
        ServiceUnavailable: too many passwords are being hashed already.
    """
    with _slot():
        return _hasher.hash(_normalized(password))


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed. Without a hash it is not, at the same cost.

    Raises:
        ServiceUnavailable: too many passwords are being hashed already.
    """
    with _slot():
        try:
            return _hasher.verify(password_hash or _unknown_hash(), _normalized(password))
        except (VerificationError, InvalidHashError):
            return False


def _normalized(password: str) -> str:
    # Two keyboards may send one character in different code points (NIST SP 800-63B-4, 3.1.1.2).
    return unicodedata.normalize("NFKC", password)


def _unknown_hash() -> str:
    """A well-formed hash of nobody's password."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${salt}${digest}"


def _fault(pointer: str, detail: str) -> FieldError:
    return {"pointer": pointer, "detail": detail}


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(timeout=_WAIT_SECONDS):
        raise ServiceUnavailable
    try:
        yield
    finally:
        _slots.release()
