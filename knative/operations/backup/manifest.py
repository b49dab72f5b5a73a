"""What a backup says of itself: written last, authenticated, and checked before anything is made of it.

    {"format": 2, "manifest": "{...}", "hmac_sha256": "..."}

The code (HMAC-SHA-256, RFC 2104) is over the very text of the manifest, its name included, under BACKUP_MANIFEST_KEY.
"""

import dataclasses
import hmac
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from knative.operations.backup.store import BEGUN, MANIFEST, Missing, Store, Vault
from knative.terminal import Refused

FORMAT = 2
UNAUTHENTICATED = 1
"""Earlier releases wrote the manifest alone."""
MOST_BYTES = 2**20
_TABLE = re.compile(r"[a-z0-9_]+")
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z")


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
    if not _NAME.fullmatch(name):
        return False
    with suppress(ValueError):
        return f"{taken_at(name):%Y%m%dT%H%M%SZ}" == name
    return False


def begin(vault: Vault, name: str) -> None:
    """Marks what is being written as ours, so that it may be deleted when it dies half-way."""
    _write(vault, name, BEGUN, json.dumps({"begun": name}))


def was_begun(vault: Vault, name: str) -> bool:
    """Whether one of us has begun this backup."""
    try:
        return bool(json.loads(_authentic(vault, name, BEGUN)) == {"begun": name})
    except (Missing, Refused, ValueError):
        return False


def write(vault: Vault, manifest: Manifest) -> None:
    _write(vault, manifest.name, MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1))


def read(vault: Vault, name: str) -> Manifest:
    """What a backup says of itself.

    Raises:
        Missing: there is no backup of this name, or only a part of one.
        Refused: what is there is not authentic, or of a newer program.
    """
    return _parsed(name, _authentic(vault, name, MANIFEST))


def read_unauthenticated(store: Store, name: str) -> Manifest:
    """What a backup says of itself, be it true or not. Raises as `read` does."""
    content = _content(store, name, MANIFEST)
    with suppress(ValueError, KeyError, TypeError):
        content = json.loads(content)["manifest"].encode()
    return _parsed(name, content)


def _write(vault: Vault, name: str, part: str, content: str) -> None:
    signed = {"format": FORMAT, "manifest": content, "hmac_sha256": _code(vault.manifest_keys[0], content)}
    with vault.store.write(name, part) as sink:
        sink.write(json.dumps(signed, indent=1).encode())


def _authentic(vault: Vault, name: str, part: str) -> bytes:
    found = _content(vault.store, name, part)
    try:
        stated: Any = json.loads(found)
        if not isinstance(stated, dict):
            raise ValueError
        number = stated.get("format")
        if isinstance(number, int) and number > FORMAT:
            raise Refused(
                f"The backup {name} has the format {number}, and this program reads only {FORMAT}.\n"
                "Use the release that made it."
            )
        content, code = str(stated["manifest"]), str(stated["hmac_sha256"])
        codes = [_code(key, content).encode() for key in vault.manifest_keys]
        # All are compared, so that the time does not tell which key it was.
        if not any([hmac.compare_digest(code.encode(), one) for one in codes]):  # noqa: C419
            raise ValueError
    except (ValueError, KeyError, RecursionError):
        raise Refused(
            f"The manifest of the backup {name} is not authentic: damaged, changed by somebody, or made by an earlier"
            " release or under another BACKUP_MANIFEST_KEY.\nChoose another backup (aegis backups), or, if you are"
            f" sure that this one is yours: aegis backups --accept {name}"
        ) from None
    return content.encode()


def _content(store: Store, name: str, part: str) -> bytes:
    with store.read(name, part) as source:
        return source.read(MOST_BYTES)


def _parsed(name: str, content: bytes) -> Manifest:
    try:
        found = TypeAdapter(Manifest).validate_python(json.loads(content))
        if found.name != name or not is_name(name) or not all(map(_TABLE.fullmatch, found.rows)):
            raise ValueError
        return found
    except (ValueError, ValidationError, RecursionError):
        raise Refused(f"The manifest of the backup {name} is damaged. Choose another backup: aegis backups") from None


def _code(key: bytes, content: str) -> str:
    return hmac.digest(key, b"aegis backup manifest\n" + content.encode(), "sha256").hex()
