"""What a backup says of itself: written last, and checked before anything is made of it."""

import dataclasses
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from knative.release.backup.store import MANIFEST, Missing, Store
from knative.release.refused import Refused

FORMAT = 1
MOST_BYTES = 2**20
_TABLE = re.compile(r"[a-z0-9_]+")
_NAME = re.compile(r"\d{8}T\d{6}Z")


@dataclasses.dataclass(frozen=True)
class Part:
    """An object of a backup, as it is in the store: encrypted."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a backup without its key.

    Attributes:
        name: when it was begun (UTC), as 20260131T170000Z; names sort by age.
        finished_at: ISO 8601.
        schema: the last migration that the database had.
        postgresql: the server's version.
        wal_position: of the snapshot that the dump shows (pg_current_wal_lsn).
        rows: how many each table has in that snapshot.
    """

    format: int
    name: str
    finished_at: str
    schema: str
    postgresql: str
    wal_position: str
    rows: dict[str, int]
    dump: Part
    purged: Part

    @property
    def taken_at(self) -> datetime:
        return taken_at(self.name)

    @property
    def size(self) -> int:
        return self.dump.size + self.purged.size


def new_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def taken_at(name: str) -> datetime:
    return datetime.strptime(name, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def is_name(name: str) -> bool:
    """Whether it is that of a backup: a store may hold other things, as the lost+found of a volume."""
    return _NAME.fullmatch(name) is not None


def write(store: Store, manifest: Manifest) -> None:
    with store.write(manifest.name, MANIFEST) as sink:
        sink.write(json.dumps(dataclasses.asdict(manifest), indent=1).encode())


def read(store: Store, name: str) -> Manifest:
    """What a backup says of itself.

    Raises:
        Missing: there is no backup of this name, or only a part of one.
        Refused: what is there is no manifest, or of a newer program.
    """
    with store.read(name, MANIFEST) as source:
        content = source.read(MOST_BYTES)
    try:
        stated: Any = json.loads(content)
        if isinstance(stated, dict) and stated.get("format", FORMAT) != FORMAT:
            raise Refused(
                f"The backup {name} has the format {stated['format']}, and this program knows {FORMAT} alone.\n"
                "Use the release that made it."
            )
        found = TypeAdapter(Manifest).validate_python(stated)
        # It is not encrypted: whoever may write to the store must not choose what PostgreSQL executes.
        if found.name != name or not all(map(_TABLE.fullmatch, found.rows)):
            raise ValueError
        return found
    except (ValueError, ValidationError):
        raise Refused(f"The manifest of the backup {name} is damaged. Choose another backup: aegis backups") from None


def finished(store: Store) -> Iterator[str]:
    """The names of the backups that have a manifest, the oldest first."""
    for name in filter(is_name, store.names()):
        try:
            with store.read(name, MANIFEST):
                yield name
        except Missing:
            continue
