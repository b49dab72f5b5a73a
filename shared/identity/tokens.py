"""Opaque tokens: 256 random bits as base64url text, of which only a hash is stored."""

import base64
import hashlib
import secrets

TOKEN_BYTES = 32


def new_token() -> str:
    return encode(secrets.token_bytes(TOKEN_BYTES))


def hash_token(token: str) -> bytes:
    """Return the hash to store for a token: 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).digest()


def encode(content: bytes) -> str:
    """Encode bytes as base64url without padding (RFC 4648, 5)."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Decode base64url without padding.

    Raises:
        ValueError: the text is not base64url.
    """
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
