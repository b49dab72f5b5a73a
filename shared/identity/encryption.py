"""Encryption of secrets that must be read again (AES-256-GCM), and hashing of short ones, with ENCRYPTION_KEY."""

import hashlib
import hmac
import secrets

from shared.runtime.settings import required, settings

_NONCE_BYTES = 12


def seal(purpose: str, content: bytes, owner: bytes) -> bytes:
    """Encrypt content so that only `unseal` with the same purpose and owner decrypts it.

    Args:
        purpose: what it is for; each purpose has a separate key.
        owner: the user or row it belongs to; a value copied to another owner cannot be decrypted.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(_key("seal", purpose)).encrypt(nonce, content, owner)


def unseal(purpose: str, sealed: bytes, owner: bytes) -> bytes:
    """Decrypt sealed content.

    Raises:
        cryptography.exceptions.InvalidTag: the key, purpose or owner differs, or the content was altered.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_key("seal", purpose)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner)


def keyed_hash(purpose: str, content: bytes) -> bytes:
    """Return the HMAC-SHA-256 of a short secret, such as a six-digit code, whose plain hash could be reversed."""
    return hmac.digest(_key("hash", purpose), content, hashlib.sha256)


def _key(use: str, purpose: str) -> bytes:
    """Derive the 256-bit key of a purpose; no two uses share a key (NIST SP 800-57, 5.2)."""
    key = required(settings().encryption_key, "ENCRYPTION_KEY")
    return hmac.digest(key, f"{use} {purpose}".encode(), hashlib.sha256)
