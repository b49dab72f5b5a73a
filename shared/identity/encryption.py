"""Secrets that must be read again, sealed (AES-256-GCM) under keys derived from ENCRYPTION_KEY."""

import hashlib
import hmac
import secrets

from shared.runtime.settings import required, settings

_NONCE_BYTES = 12


def seal(purpose: str, content: bytes, owner: bytes) -> bytes:
    """Seals content, so that only `unseal` with the same purpose and owner opens it.

    Args:
        purpose: what it is for; each purpose has a key of its own.
        owner: whose it is, or which row's; a sealed value that was moved to another does not open.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(_key("seal", purpose)).encrypt(nonce, content, owner)


def unseal(purpose: str, sealed: bytes, owner: bytes) -> bytes:
    """What was sealed.

    Raises:
        cryptography.exceptions.InvalidTag: under another key, for another purpose or owner, or altered since.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_key("seal", purpose)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner)


def keyed_hash(purpose: str, content: bytes) -> bytes:
    """HMAC-SHA-256: stored of a short secret, such as a code of six digits, which a plain hash would give away."""
    return hmac.digest(_key("hash", purpose), content, hashlib.sha256)


def _key(use: str, purpose: str) -> bytes:
    """The 256-bit key of a purpose; no two uses share one (NIST SP 800-57, 5.2)."""
    key = required(settings().encryption_key, "ENCRYPTION_KEY")
    return hmac.digest(key, f"{use} {purpose}".encode(), hashlib.sha256)
