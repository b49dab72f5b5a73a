"""Which backups of a store are ours and whole, and which an operator has to look at."""

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
"""So many are named where something is wrong with many."""
AHEAD = timedelta(minutes=5)
"""By so much clocks may differ; a name beyond that is of the future."""
_CHUNK_BYTES = 2**20


def newest_first(vault: Vault) -> Iterator[Manifest]:
    """The good backups: authentic, not of the future, and with both objects in the sizes that the manifest states."""
    for name in sorted(filter(manifest.is_name, vault.store.names()), reverse=True):
        found = problem(vault, name)
        if isinstance(found, Manifest):
            yield found


def good(vault: Vault) -> set[str]:
    """The names of the good backups."""
    return {found.name for found in newest_first(vault)}


def problem(vault: Vault, name: str) -> Manifest | str:
    """A good backup's manifest, or what is wrong with what has this name."""
    if manifest.taken_at(name) > datetime.now(UTC) + AHEAD:
        return "its name is in the future"
    try:
        found = manifest.read(vault, name)
        for part, stated in ((DUMP, found.dump), (PURGED, found.purged)):
            if vault.store.size(name, part) != stated.size:
                return f"{part} has another size than the manifest states"
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
    """Tells of what cannot be verified, and therefore neither counts nor is ever deleted."""
    if suspects:
        named = ", ".join(sorted(suspects)[:NAMED])
        progress.say(
            f"WARNING: {few(suspects)} in the store cannot be verified, do not count and are not deleted: {named}"
            f"{', ...' if len(suspects) > NAMED else ''}. aegis backups says why; docs/backup.md, what to do"
        )


def few(names: Collection[str]) -> str:
    return f"{len(names)} {'backup' if len(names) == 1 else 'backups'}"


def newest_known(database: str) -> str:
    """The newest backup that a database remembers; empty where it remembers none or cannot be asked."""
    try:
        with connected(database) as connection:
            return connection.scalar(select(backup.c.name).order_by(backup.c.taken_at.desc()).limit(1)) or ""
    except (Refused, DBAPIError):
        return ""


def accept(vault: Vault, name: str, database: str) -> str:
    """Authenticates a backup for which an operator vouches: of an earlier release, or under a key that is gone.

    Raises:
        Refused: there is none of this name, or its objects are not those that its manifest states.
    """
    try:
        if not manifest.is_name(name):
            raise Missing
        found = manifest.read_unauthenticated(vault.store, name)
        for part, stated in ((DUMP, found.dump), (PURGED, found.purged)):
            if _measured(vault, name, part) != stated:
                raise Refused(f"Nothing was changed. The checksum of {part} of {name} is not the manifest's.")
    except Missing:
        raise Refused(f"Nothing was changed. There is no backup {name}, or an object of it is missing.") from None
    manifest.write(vault, Manifest(**{**vars(found), "format": manifest.FORMAT}))
    return f"{name} is authenticated from now on. {_remembered(found, database)}"


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
        return "WARNING: the database has no record of this name: only you vouch for it."
    if size != found.size:
        return f"WARNING: the database remembers {size:,} bytes, and it has {found.size:,}: look before you restore it."
    return "Its size is as the database remembers it."
