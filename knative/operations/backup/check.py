"""Whether what is in the store is what the manifest says, and can be restored: all of it is read."""

import subprocess
from collections.abc import Callable
from typing import IO

from knative.operations.backup.manifest import Manifest, Part
from knative.operations.backup.postgresql import pipe, running
from knative.operations.backup.store import DUMP, PURGED, Missing, Vault
from knative.operations.backup.streams import Measured, Nowhere, Sink, Undecipherable, decrypt
from knative.terminal import Progress, Refused

OTHER = "Choose another backup: aegis backups lists them."


def check(vault: Vault, manifest: Manifest, progress: Progress) -> None:
    """Reads a backup: size and SHA-256 are the manifest's, it decrypts to its end, and pg_restore knows what it is.

    Raises:
        Refused: with what is wrong.
    """

    def tell(size: int) -> None:
        progress.wait(f"{size * 100 // max(manifest.dump.size, 1)} % of the backup checked")

    with running("pg_restore", "--list", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        read(vault, manifest, DUMP, _Beginning(pipe(process.stdin)), tell=tell)
    check_purged(vault, manifest)


def check_purged(vault: Vault, manifest: Manifest) -> None:
    """Reads the smaller part. Raises Refused."""
    read(vault, manifest, PURGED, Nowhere())


def read(
    vault: Vault, manifest: Manifest, part: str, sink: Sink, *, tell: Callable[[int], None] = lambda _: None
) -> None:
    """Decrypts a part of a backup into a sink, and makes sure that it is the one which its manifest states.

    Raises:
        Refused: it is not, or the key is another one.
    """
    name, stated = manifest.name, {DUMP: manifest.dump, PURGED: manifest.purged}[part]
    try:
        with vault.store.read(name, part) as source:
            measured = Measured(source, tell)
            decrypt(measured, sink, vault.identities)
    except Missing:
        raise Refused(f"The backup {name} has no {part} any more. {OTHER}") from None
    except Undecipherable as error:
        raise Refused(f"The backup {name} cannot be used ({part}): {error}. {OTHER}") from None
    if Part(measured.size, measured.sha256) != stated:
        raise Refused(f"The backup {name} cannot be used ({part}): its checksum is not the manifest's. {OTHER}")


class _Beginning:
    """Writes to a program for as long as it reads: a list of contents stands at the beginning."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream: IO[bytes] | None = stream

    def write(self, content: bytes) -> int:
        if self._stream:
            try:
                self._stream.write(content)
            except BrokenPipeError:
                self._stream = None
        return len(content)
