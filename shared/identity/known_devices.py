"""Known devices: a device that has logged in before has separate rate limits, which strangers cannot use up.

These are OWASP's device cookies (Slow Down Online Guessing Attacks with Device Cookies), as a token that any client can
keep. A token is not a factor: it only decides which limit a guess counts against. The service stores none of them. A
change of the password or the e-mail address revokes all tokens of the account.
"""

import hmac
import secrets
import time
from datetime import timedelta

from sqlalchemy import bindparam, select

from shared.identity.encryption import keyed_hash
from shared.identity.tokens import decode, encode
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, credential
from shared.postgresql.transactions import transaction

LIFETIME = timedelta(days=90)
"""Each login and each refresh returns a new token."""

_PURPOSE = "known device"
_ID_BYTES, _TIME_BYTES, _HASH_BYTES = 16, 8, 32
_LENGTH = len(encode(bytes(_ID_BYTES + _TIME_BYTES + 2 * _HASH_BYTES)))

_PASSWORD_HASH = prepared(
    select(credential.c.password_hash).join(account).where(account.c.canonical_email == bindparam("email"))
)


def new_token(email: str, password_hash: str | None) -> str:
    """Create a token for the device that the account's owner has just logged in with.

    Args:
        email: the account's canonical address.
        password_hash: the stored hash; None for an account without a password.
    """
    expires_at = int(time.time() + LIFETIME.total_seconds())
    device = secrets.token_bytes(_ID_BYTES) + expires_at.to_bytes(_TIME_BYTES, "big") + _revocation(password_hash)
    return encode(device + _signature(device, email))


def recognize(token: str, email: str) -> str | None:
    """Return the device id in a token; None if it is for another account, expired or revoked.

    The database is queried only for a token with our signature for this address.
    """
    if len(token) != _LENGTH:
        return None
    try:
        content = decode(token)
    except ValueError:
        return None
    device, signature = content[:-_HASH_BYTES], content[-_HASH_BYTES:]
    if not hmac.compare_digest(signature, _signature(device, email)):
        return None
    id_, rest = device[:_ID_BYTES], device[_ID_BYTES:]
    if int.from_bytes(rest[:_TIME_BYTES], "big") < time.time():
        return None
    with transaction() as connection:
        password_hash = connection.scalar(_PASSWORD_HASH, {"email": email})
    return id_.hex() if hmac.compare_digest(rest[_TIME_BYTES:], _revocation(password_hash)) else None


def _signature(device: bytes, email: str) -> bytes:
    return keyed_hash(_PURPOSE, device + email.encode())


def _revocation(password_hash: str | None) -> bytes:
    """Return a value that changes with the password, which revokes the account's tokens."""
    return keyed_hash(f"password of a {_PURPOSE}", (password_hash or "").encode())
