"""Tell authentic, complete backups from those that an operator must inspect."""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from knative.operations.backup import manifest
from knative.operations.backup.manifest import Manifest, Part
from knative.operations.backup.postgresql import connected
from knative.operations.backup.store import DUMP, MANIFEST, PURGED, Missing, Vault
from knative.operations.backup.streams import Measured
from knative.terminal import Progress, Refused
from shared.postgresql.tables import backup

NAMED = 5
"""How many backups a message names at most."""
AHEAD = timedelta(minutes=5)
"""Tolerated clock difference. A name further ahead is in the future."""
_CHUNK_BYTES = 2**20


def newest_first(vault: Vault) -> Iterator[Manifest]:
    """Yield good backups: authentic, not in the future, and both objects have the sizes in the manifest."""
    for name in sorted(filter(manifest.is_name, vault.store.names()), reverse=True):
        found = problem(vault, name)
        if isinstance(found, Manifest):
            yield found


def good(vault: Vault) -> set[str]:
    """Return the names of the good backups."""
    return {found.name for found in newest_first(vault)}


def problem(vault: Vault, name: str) -> Manifest | str:
    """Return the manifest of a good backup, or what is wrong with the backup of this name."""
    if manifest.taken_at(name) > datetime.now(UTC) + AHEAD:
        return "its name is in the future"
    try:
        found = manifest.read(vault, name)
        for part, stated in ((DUMP, found.dump), (PURGED, found.purged)):
            if vault.store.size(name, part) != stated.size:
                return f"the size of {part} differs from the manifest"
    except Missing:
        return "one of its objects is missing"
    except Refused as error:
        return str(error).partition("\n")[0]
    return found


def has_manifest(vault: Vault, name: str) -> bool:
    try:
        vault.store.size(name, MANIFEST)
    except Missing:
        return False
    return True


def report(suspects: Collection[str], progress: Progress) -> None:
    """Warn about backups that cannot be verified. They do not count and are never deleted."""
    if suspects:
        named = ", ".join(sorted(suspects)[:NAMED])
        progress.say(
            f"WARNING: {few(suspects)} in the store cannot be verified. They do not count and are not deleted: {named}"
            f"{', ...' if len(suspects) > NAMED else ''}. aegis backups shows why. See docs/backup.md"
        )


def few(names: Collection[str]) -> str:
    return f"{len(names)} {'backup' if len(names) == 1 else 'backups'}"


def newest_known(database: str) -> str:
    """Return the newest backup that a database has recorded, or "" if there is none or the database is unavailable."""
    try:
        with connected(database) as connection:
            return connection.scalar(select(backup.c.name).order_by(backup.c.taken_at.desc()).limit(1)) or ""
    except (Refused, DBAPIError):
        return ""


def accept(vault: Vault, name: str, database: str) -> str:
    """Authenticate a backup for which an operator vouches, made by an earlier release or with a key that is gone.

    Raises:
        Refused: it does not exist, or its objects differ from its manifest.
    """
    try:
        if not manifest.is_name(name):
            raise Missing
        found = manifest.read_unauthenticated(vault.store, name)
        for part, stated in ((DUMP, found.dump), (PURGED, found.purged)):
            if _measured(vault, name, part) != stated:
                raise Refused(f"Nothing was changed. The checksum of {part} of {name} differs from the manifest.")
    except Missing:
        raise Refused(
            f"Nothing was changed. The backup {name} does not exist, or one of its objects is missing."
        ) from None
    manifest.write(vault, Manifest(**{**vars(found), "format": manifest.FORMAT}))
    return f"{name} is now authenticated. {_remembered(found, database)}"


def _measured(vault: Vault, name: str, part: str) -> Part:
    with vault.store.read(name, part) as source:
        measured = Measured(source)
        while measured.read(_CHUNK_BYTES):
            pass
    return Part(measured.size, measured.sha256)


def _remembered(found: Manifest, database: str) -> str:
    try:
        with connected(database) as connection:
            size = connection.scalar(select(backup.c.size).where(backup.c.name == found.name))
    except (Refused, DBAPIError):
        size = None
    if size is None:
        return "WARNING: the database has no record of this backup, so nothing but your word confirms it."
    if size != found.size:
        return f"WARNING: the database has recorded {size:,} bytes, but it has {found.size:,}. Inspect it first."
    return "Its size matches the record in the database."
