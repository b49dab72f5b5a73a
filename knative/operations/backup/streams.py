"""Streams between programs and the store: measured and encrypted (age, https://age-encryption.org/v1).

Only a few kilobytes are in memory at a time. A truncated or altered file does not decrypt to its end.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import pyrage


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Sink(Protocol):
    def write(self, content: bytes, /) -> int: ...


class Undecipherable(Exception):
    """It was encrypted to another key, or is damaged. The message says which."""


class Measured:
    """A wrapper of a stream that records the size and SHA-256 of the data, and the stream's error."""

    def __init__(self, stream: Source | Sink, tell: Callable[[int], None] = lambda _: None) -> None:
        self._stream, self._tell = stream, tell
        self._hash = hashlib.sha256()
        self.size = 0
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            content: bytes = self._stream.read(size)  # type: ignore[union-attr]
        except Exception as error:
            self.error = error
            raise
        self._note(content)
        return content

    def write(self, content: bytes) -> int:
        try:
            self._stream.write(content)  # type: ignore[union-attr]
        except Exception as error:
            self.error = error
            raise
        self._note(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing. pyrage calls this at the end; whoever opened the stream closes it."""

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _note(self, content: bytes) -> None:
        self._hash.update(content)
        self.size += len(content)
        self._tell(self.size)


class Nowhere:
    """A sink that discards its data."""

    def write(self, content: bytes) -> int:
        return len(content)


def encrypt(source: Source, sink: Measured, recipients: Sequence[str]) -> None:
    """Encrypt a source to these recipients (age, X25519), each of whom can decrypt it.

    Raises:
        Exception: the error of the sink.
    """
    try:
        pyrage.encrypt_io(source, sink, [pyrage.x25519.Recipient.from_str(one) for one in recipients])
    except (pyrage.EncryptError, OSError) as error:
        _let_ctrl_c_through(error)
        raise sink.error or error from None


def decrypt(source: Measured, sink: Sink, identities: Sequence[str]) -> None:
    """Decrypt a source to its end. If this raises, what was written until then is authentic but incomplete.

    Raises:
        Undecipherable: the source cannot be decrypted to its end.
        Exception: the error of the source or the sink.
    """
    written = Measured(sink)
    try:
        pyrage.decrypt_io(source, written, [pyrage.x25519.Identity.from_str(one) for one in identities])
    except pyrage.DecryptError as error:
        _let_ctrl_c_through(error)
        if source.error:
            raise source.error from None
        if "No matching keys" in str(error):
            raise Undecipherable("it was encrypted to a recipient that does not match this identity") from None
        raise Undecipherable(f"it does not decrypt: {error}") from None
    except OSError as error:
        _let_ctrl_c_through(error)
        raise source.error or written.error or Undecipherable(f"it does not decrypt: {error}") from None


def _let_ctrl_c_through(error: Exception) -> None:
    """Raise KeyboardInterrupt if it caused an error of pyrage, which reports a stream's error only as text."""
    if "KeyboardInterrupt" in str(error):
        raise KeyboardInterrupt from None
