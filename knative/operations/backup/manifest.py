"""The manifest of a backup: written last, authenticated, and verified before it is used.

    {"format": 2, "manifest": "{...}", "hmac_sha256": "..."}

The HMAC-SHA-256 (RFC 2104) with BACKUP_MANIFEST_KEY covers the exact text of the manifest, including its name.
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
"""Earlier releases wrote a manifest without an HMAC."""
MOST_BYTES = 2**20
_TABLE = re.compile(r"[a-z0-9_]+")
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z")


@dataclasses.dataclass(frozen=True)
class Part:
    """An encrypted object of a backup in the store."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known about a backup without its key.

    Attributes:
        name: when it was begun (UTC), such as 20260131T170000Z; names sort by age.
        finished_at: ISO 8601.
        schema: the last migration that the database had.
        postgresql: the server's version.
        wal_position: the position of the dump's snapshot (pg_current_wal_lsn).
        rows: the number of rows of each table in that snapshot.
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
    """Return whether this is a backup's name. A store can have other entries, such as a volume's lost+found."""
    if not _NAME.fullmatch(name):
        return False
    with suppress(ValueError):
        return f"{taken_at(name):%Y%m%dT%H%M%SZ}" == name
    return False


def begin(vault: Vault, name: str) -> None:
    """Mark a backup as begun by us, so that it can be deleted if it stays incomplete."""
    _write(vault, name, BEGUN, json.dumps({"begun": name}))


def was_begun(vault: Vault, name: str) -> bool:
    """Return whether this service began the backup."""
    try:
        return bool(json.loads(_authentic(vault, name, BEGUN)) == {"begun": name})
    except (Missing, Refused, ValueError):
        return False


def write(vault: Vault, manifest: Manifest) -> None:
    _write(vault, manifest.name, MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1))


def read(vault: Vault, name: str) -> Manifest:
    """Return the authenticated manifest of a backup.

    Raises:
        Missing: there is no backup of this name, or it is incomplete.
        Refused: the manifest is not authentic, or was made by a newer release.
    """
    return _parsed(name, _authentic(vault, name, MANIFEST))


def read_unauthenticated(store: Store, name: str) -> Manifest:
    """Return the manifest of a backup without checking its HMAC. Raises like `read`."""
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
                f"The backup {name} has the format {number}, but this program reads only {FORMAT}.\n"
                "Use the release that made it."
            )
        content, code = str(stated["manifest"]), str(stated["hmac_sha256"])
        codes = [_code(key, content).encode() for key in vault.manifest_keys]
        # Compare with all keys, so that the time does not reveal which one matched.
        if not any([hmac.compare_digest(code.encode(), one) for one in codes]):  # noqa: C419
            raise ValueError
    except (ValueError, KeyError, RecursionError):
        raise Refused(
            f"The manifest of the backup {name} is not authentic: it was damaged or changed, or made by an earlier"
            " release or with another BACKUP_MANIFEST_KEY.\nChoose another backup (aegis backups). If you are"
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
