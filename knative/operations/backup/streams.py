"""What flows from a program into a store and back: measured, and encrypted (age, https://age-encryption.org/v1).

Both ways hold a few kilobytes at a time. A file that was cut short, or altered, does not decrypt to its end.
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
    """It was encrypted to another key, or is not whole; the message says which."""


class Measured:
    """A stream in between, which knows size and SHA-256 of what has passed, and what went wrong with it."""

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
        """Asked for at the end of an encryption; whoever opened the stream closes it."""

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _note(self, content: bytes) -> None:
        self._hash.update(content)
        self.size += len(content)
        self._tell(self.size)


class Nowhere:
    """Takes what only has to be read."""

    def write(self, content: bytes) -> int:
        return len(content)


def encrypt(source: Source, sink: Measured, recipients: Sequence[str]) -> None:
    """Encrypts all of a source to these recipients (age, X25519), each of whom can open it.

    Raises:
        Exception: the sink's own.
    """
    try:
        pyrage.encrypt_io(source, sink, [pyrage.x25519.Recipient.from_str(one) for one in recipients])
    except (pyrage.EncryptError, OSError) as error:
        _let_ctrl_c_through(error)
        raise sink.error or error from None


def decrypt(source: Measured, sink: Sink, identities: Sequence[str]) -> None:
    """Decrypts a source to its end; what has been written when it raises is a true part of what was encrypted.

    Raises:
        Undecipherable: what has been written until then is not all there was.
        Exception: the source's or the sink's own.
    """
    written = Measured(sink)
    try:
        pyrage.decrypt_io(source, written, [pyrage.x25519.Identity.from_str(one) for one in identities])
    except pyrage.DecryptError as error:
        _let_ctrl_c_through(error)
        if source.error:
            raise source.error from None
        if "No matching keys" in str(error):
            raise Undecipherable("it was encrypted to another recipient than this identity's") from None
        raise Undecipherable(f"it does not decrypt: {error}") from None
    except OSError as error:
        _let_ctrl_c_through(error)
        raise source.error or written.error or Undecipherable(f"it does not decrypt: {error}") from None


def _let_ctrl_c_through(error: Exception) -> None:
    """Raises KeyboardInterrupt where it is behind an error of pyrage, which tells of what a stream raised in words."""
    if "KeyboardInterrupt" in str(error):
        raise KeyboardInterrupt from None
