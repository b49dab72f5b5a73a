"""Second factors: the codes of an authenticator app (TOTP, RFC 6238), and recovery codes for when it is lost."""

import hmac
import re
import secrets
import time
from uuid import UUID

from sqlalchemy import Connection, delete, insert, update
from typing_extensions import TypedDict

from shared.identity.encryption import keyed_hash, seal, unseal
from shared.postgresql.tables import recovery_code, totp
from shared.text.normalisation import plain

SECRET_BYTES = 20
"""160 bits (RFC 4226, 4, R6)."""
METHODS = ("otp", "mfa")
"""The methods that a code adds to a session (RFC 8176)."""
RECOVERY_CODES = 10

_PURPOSE = "totp"
_DRIFT = 1
"""Allowed clock drift in 30-second steps, in both directions (RFC 6238, 5.2)."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MISREAD = str.maketrans("OIL", "011", " -")
_CODE_LENGTH = 24
"""Characters of 5 bits each: 120 bits, so a plain keyed hash is enough (ASVS 5.0, 6.5.2)."""


def seal_secret(user_id: UUID, secret: bytes) -> bytes:
    """Encrypt the secret of an authenticator app, for storage."""
    return seal(_PURPOSE, secret, user_id.bytes)


def step_of(user_id: UUID, sealed_secret: bytes, code: str) -> int | None:
    """Return the time step (RFC 6238, 4.2) of a six-digit code; None if it matches no step near now."""
    import base64

    import pyotp

    code = re.sub("[ -]", "", plain(code))
    if not re.fullmatch("[0-9]{6}", code):
        return None
    app = pyotp.TOTP(base64.b32encode(unseal(_PURPOSE, sealed_secret, user_id.bytes)).decode())
    now = app.timecode(time.time())
    near = range(now - _DRIFT, now + _DRIFT + 1)
    return next((step for step in near if hmac.compare_digest(app.generate_otp(step), code)), None)


def use_step(connection: Connection, user_id: UUID, step: int) -> bool:
    """Use the code of this step. Return False if a code of this or a later step was used before (RFC 6238, 5.2)."""
    used = connection.execute(
        update(totp)
        .where(totp.c.account_id == user_id, totp.c.confirmed_at.is_not(None), totp.c.last_step < step)
        .values(last_step=step)
    )
    return used.rowcount > 0


class NewRecoveryCodes(TypedDict):
    recovery_codes: list[str]


def replace_recovery_codes(connection: Connection, user_id: UUID) -> NewRecoveryCodes:
    """Give a user new recovery codes, and void the old ones. Only hashes are stored."""
    codes = new_recovery_codes()
    rows = [{"account_id": user_id, "code_hash": recovery_code_hash(user_id, code)} for code in codes]
    connection.execute(delete(recovery_code).where(recovery_code.c.account_id == user_id))
    connection.execute(insert(recovery_code).values(rows))
    return NewRecoveryCodes(recovery_codes=codes)


def new_recovery_codes() -> list[str]:
    """Return ten codes in the form that users see."""
    return [new_code() for _ in range(RECOVERY_CODES)]


def recovery_code_hash(user_id: UUID, code: str) -> bytes | None:
    """Return the hash to store for a recovery code; None if it cannot be a code."""
    read = read_code(code)
    return keyed_hash("recovery code", user_id.bytes + read.encode()) if read else None


def new_code() -> str:
    """Return a code for people to type: 7K3M-QP0X-..., in Crockford's base 32, without characters that look alike."""
    return "-".join("".join(secrets.choice(_CROCKFORD) for _ in range(4)) for _ in range(_CODE_LENGTH // 4))


def read_code(text: str) -> str | None:
    """Normalize a code that somebody typed: spaces, dashes, case and O for 0 do not matter.

    None if it cannot be a code.
    """
    code = plain(text).upper().translate(_MISREAD)
    return code if len(code) == _CODE_LENGTH and set(code) <= set(_CROCKFORD) else None


def use_recovery_code(connection: Connection, user_id: UUID, code_hash: bytes) -> bool:
    """Use a recovery code. Return False if it is not one of the user's unused codes."""
    used = connection.execute(
        delete(recovery_code).where(recovery_code.c.account_id == user_id, recovery_code.c.code_hash == code_hash)
    )
    return used.rowcount > 0


def remove(connection: Connection, user_id: UUID) -> bool:
    """Remove a user's authenticator app, confirmed or not, and recovery codes; return False if there was no app."""
    removed = connection.execute(delete(totp).where(totp.c.account_id == user_id)).rowcount > 0
    connection.execute(delete(recovery_code).where(recovery_code.c.account_id == user_id))
    return removed
