"""Check that a backup in the store matches its manifest and can be restored, by reading all of it."""

import subprocess
from collections.abc import Callable
from typing import IO

from knative.operations.backup.manifest import Manifest, Part
from knative.operations.backup.postgresql import pipe, running
from knative.operations.backup.store import DUMP, PURGED, Missing, Vault
from knative.operations.backup.streams import Measured, Nowhere, Sink, Undecipherable, decrypt
from knative.terminal import Progress, Refused

OTHER = "Choose another one from: aegis backups"


def check(vault: Vault, manifest: Manifest, progress: Progress) -> None:
    """Check that size and SHA-256 match the manifest, that it decrypts completely, and that pg_restore can read it.

    Raises:
        Refused: with the problem.
    """

    def tell(size: int) -> None:
        progress.wait(f"{size * 100 // max(manifest.dump.size, 1)} % of the backup checked")

    with running("pg_restore", "--list", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        read(vault, manifest, DUMP, _Beginning(pipe(process.stdin)), tell=tell)
    check_purged(vault, manifest)


def check_purged(vault: Vault, manifest: Manifest) -> None:
    """Check the list of purged accounts. Raises Refused."""
    read(vault, manifest, PURGED, Nowhere())


def read(
    vault: Vault, manifest: Manifest, part: str, sink: Sink, *, tell: Callable[[int], None] = lambda _: None
) -> None:
    """Decrypt a part of a backup into a sink and check that it matches the manifest.

    Raises:
        Refused: it does not match, or the key does not open it.
    """
    name, stated = manifest.name, {DUMP: manifest.dump, PURGED: manifest.purged}[part]
    try:
        with vault.store.read(name, part) as source:
            measured = Measured(source, tell)
            decrypt(measured, sink, vault.identities)
    except Missing:
        raise Refused(f"The backup {name} no longer has {part}. {OTHER}") from None
    except Undecipherable as error:
        raise Refused(f"The backup {name} cannot be used ({part}): {error}. {OTHER}") from None
    if Part(measured.size, measured.sha256) != stated:
        raise Refused(f"The backup {name} cannot be used ({part}): its checksum differs from the manifest. {OTHER}")


class _Beginning:
    """Write to a program until it stops reading: it needs only the table of contents at the beginning."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream: IO[bytes] | None = stream

    def write(self, content: bytes) -> int:
        if self._stream:
            try:
                self._stream.write(content)
            except BrokenPipeError:
                self._stream = None
        return len(content)
