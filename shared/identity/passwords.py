"""Passwords: argon2id with OWASP's parameters, the rules of NIST SP 800-63B-4, and a limit on concurrent hashing."""

import base64
import hashlib
import logging
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.identity.guessable_passwords import remainder
from shared.runtime import deadline, metrics
from shared.runtime.once import once
from shared.runtime.problems import FieldError, InvalidRequest, ServiceUnavailable
from shared.runtime.settings import settings

if TYPE_CHECKING:
    import urllib3

MIN_LENGTH = 15
"""In Unicode characters, for a password that is the only factor (NIST SP 800-63B-4, 3.1.1.2)."""

# OWASP Password Storage Cheat Sheet: 19 MiB, two passes, one lane; about 35 ms of one core.
_MEMORY_KIB, _PASSES, _LANES = 19456, 2, 1
_hasher = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES)

_WAIT_SECONDS = 2.0
_slots = threading.BoundedSemaphore(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)

_MIN_STRENGTH = 2
_WINDOW = 32
"""Characters that zxcvbn judges at once: its time grows at least with the square of their number."""
_REPEATED = re.compile(rf"(.{{1,{_WINDOW}}}?)\1+", re.DOTALL)
_JUDGED_LENGTH = 256
"""The longest password that a request may contain. Normalization can turn one character into eighteen."""

_BREACHED_SECONDS = 1.0
_PREFIX_LENGTH = 5
_RANGE_BYTES = 1024 * 1024
_RANGE = re.compile(r"[0-9A-F]{35}:[0-9]+(\r?\n[0-9A-F]{35}:[0-9]+)*\s*", re.IGNORECASE)

log = logging.getLogger(__name__)


def check_acceptable(password: str, *known: str | None, pointer: str = "/password") -> None:
    """Refuse a new password that is short, common, breached, or made of what is known about the user.

    The check for breached passwords requires BREACHED_PASSWORDS_URL. Call this outside of any transaction.

    Args:
        known: address and name of the user.
        pointer: the place of the password in the request.

    Raises:
        InvalidRequest: with an error at `pointer`.
        ServiceUnavailable: too many passwords are being checked or hashed.
    """
    length = len(password)
    password = _normalized(password)
    if min(length, len(password)) < MIN_LENGTH:  # normalization can lengthen it
        raise InvalidRequest(
            errors=[_fault(pointer, "password_too_short", f"A password must have at least {MIN_LENGTH} characters.")]
        )

    with _slot():
        is_strong = _is_strong(remainder(password[:_JUDGED_LENGTH], *known))
    if not is_strong:
        raise InvalidRequest(
            errors=[
                _fault(
                    pointer,
                    "password_common",
                    "This password is common or follows a pattern that is easy to guess. Choose another.",
                )
            ]
        )
    if _is_breached(password):
        raise InvalidRequest(
            errors=[_fault(pointer, "password_breached", "This password is in a list of stolen ones. Choose another.")]
        )


def _is_strong(password: str) -> bool:
    """Return whether any part of a password is hard to guess, because then the whole password is."""
    from zxcvbn import zxcvbn

    # zxcvbn would miss a repeated pattern if a window started inside of it.
    password = _REPEATED.sub(lambda found: found[1] if len(found[0]) > _WINDOW // 2 else found[0], password)
    last = max(0, len(password) - _WINDOW)
    # Windows overlap, because a part that is hard to guess can cross a border.
    windows = dict.fromkeys(password[start : start + _WINDOW] for start in [*range(0, last, _WINDOW // 2), last])
    return any(zxcvbn(window, max_length=_WINDOW)["score"] >= _MIN_STRENGTH for window in windows if window)


def hash_password(password: str) -> str:
    """Return the argon2id hash to store.

    Raises:
        ServiceUnavailable: too many passwords are being hashed.
    """
    with _slot():
        return _hasher.hash(_normalized(password))


def verify_password(password_hash: str | None, password: str) -> bool:
    """Return whether the password matches the hash. Without a hash, return False at the same cost.

    Raises:
        ServiceUnavailable: too many passwords are being hashed.
    """
    with _slot():
        try:
            return _hasher.verify(password_hash or _unknown_hash(), _normalized(password))
        except (VerificationError, InvalidHashError):
            return False


def _is_breached(password: str) -> bool:
    """Return whether BREACHED_PASSWORDS_URL lists a password; False if it does not answer.

    k-anonymity: we send only five digits of the SHA-1, which hundreds of breached passwords share, and padding keeps
    the response size from revealing them. The check fails open: the service works without the list, and the password
    has passed the other rules.
    """
    if not settings().breached_passwords_url:
        return False
    digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()
    prefix, suffix = digest[:_PREFIX_LENGTH], digest[_PREFIX_LENGTH:]
    # In a thread, so that the limit also covers DNS lookups and slow responses.
    answer = _askers().submit(_breached_with, prefix)
    try:
        outcome = "breached" if suffix in answer.result(_BREACHED_SECONDS) else "clean"
    except Exception as error:
        answer.cancel()
        outcome = "unavailable"
        log.warning("cannot look up breached passwords; skipping the check", extra={"error": type(error).__name__})
    metrics.BREACHED_CHECKS.inc(outcome)
    return outcome == "breached"


def _breached_with(prefix: str) -> set[str]:
    """Return the rest of the SHA-1 of each breached password with this prefix, without padding, whose count is 0.

    Raises:
        ValueError: the response is not that of a range API.
        urllib3.exceptions.HTTPError: there is no response.
    """
    response = _range_api().request(
        "GET",
        f"{settings().breached_passwords_url}/range/{prefix}",
        headers={"Add-Padding": "true", "User-Agent": "aegis-user-service"},
        preload_content=False,
        redirect=False,
    )
    try:
        text = response.read(_RANGE_BYTES).decode("ascii")
    finally:
        response.release_conn()
    if response.status != 200 or not _RANGE.fullmatch(text):
        raise ValueError
    rows = (line.split(":") for line in text.upper().split())
    return {suffix for suffix, count in rows if int(count)}


@once
def _askers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(settings().threads, thread_name_prefix="breached-passwords")


@once
def _range_api() -> "urllib3.PoolManager":
    import urllib3

    return urllib3.PoolManager(timeout=_BREACHED_SECONDS, retries=False, maxsize=settings().threads)


def _normalized(password: str) -> str:
    # Keyboards can send the same character as different code points (NIST SP 800-63B-4, 3.1.1.2).
    return unicodedata.normalize("NFKC", password)


def _unknown_hash() -> str:
    """Return a well-formed hash that no password matches."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${salt}${digest}"


def _fault(pointer: str, code: str, detail: str) -> FieldError:
    return FieldError(pointer=pointer, code=code, detail=detail)


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(blocking=False):
        metrics.HASHES_WAITING.inc()
        try:
            in_time = _slots.acquire(timeout=deadline.left(_WAIT_SECONDS))
        finally:
            metrics.HASHES_WAITING.inc(by=-1)
        if not in_time:
            metrics.HASHES_SHED.inc()
            raise ServiceUnavailable
    try:
        yield
    finally:
        _slots.release()
