"""The store of backups: a folder (a volume), or a bucket of S3 or a compatible service.

NAME/dump.age        the output of pg_dump, encrypted
NAME/purged.age      ids of the accounts that were purged before the backup, encrypted
NAME/manifest.json   written last: without it there is no backup
NAME/begun.json      exists while the backup is written
"""

import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from knative.operations.backup.streams import Sink, Source
from knative.terminal import Refused

DUMP, PURGED, MANIFEST, BEGUN = "dump.age", "purged.age", "manifest.json", "begun.json"

PART_BYTES = 16 * 2**20
"""Size of the parts of a large object, of which a bucket allows 10,000. One is in memory at a time."""
LOCKED = timedelta(days=30)
"""How long objects in a bucket with Object Lock cannot be deleted or changed."""


class Missing(Exception):
    """There is no such object."""


class Store(Protocol):
    def names(self) -> list[str]:
        """Return all names in order, including incomplete backups, which have no manifest."""

    @contextmanager
    def write(self, name: str, part: str) -> Iterator[Sink]:
        """Write an object. It appears as a whole at the end of the block, or not at all if the block raises."""

    @contextmanager
    def read(self, name: str, part: str) -> Iterator[Source]:
        """Read an object. Raises Missing."""

    def size(self, name: str, part: str) -> int:
        """Return the size in bytes. Raises Missing."""

    def delete(self, name: str, part: str = "") -> None:
        """Delete one object of a backup, or the whole backup, its manifest first."""


class Vault(NamedTuple):
    """A store and its keys.

    Attributes:
        manifest_keys: the first authenticates new manifests; all are accepted.
        recipients: public keys that backups are encrypted to (age, X25519).
        identities: private keys that open backups; empty to only take and list them.
    """

    store: Store
    manifest_keys: tuple[bytes, ...]
    recipients: tuple[str, ...]
    identities: tuple[str, ...] = ()


def opened(address: str) -> Store:
    """Return the store of the setting BACKUP_STORE."""
    if address.startswith("s3://"):
        return Bucket(address)
    return Folder(Path(address))


class Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        return sorted(path.name for path in self._root.iterdir()) if self._root.exists() else []

    @contextmanager
    def write(self, name: str, part: str) -> Iterator[Sink]:
        path = self._root / name / part
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_name(f"{part}.unfinished")
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        for folder in (path.parent, self._root):
            _sync(folder)

    @contextmanager
    def read(self, name: str, part: str) -> Iterator[Source]:
        self.size(name, part)
        with (self._root / name / part).open("rb") as file:
            yield file

    def size(self, name: str, part: str) -> int:
        try:
            status = (self._root / name / part).lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise Missing from None
        # Opening a pipe would block forever.
        if not stat.S_ISREG(status.st_mode):
            raise Missing
        return status.st_size

    def delete(self, name: str, part: str = "") -> None:
        if part:
            (self._root / name / part).unlink(missing_ok=True)
            return
        (self._root / name / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self._root / name)


def _sync(folder: Path) -> None:
    """Sync a folder, so that the names in it survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Bucket:
    """A bucket. boto3 reads the credentials, and AWS_ENDPOINT_URL for other services, from the environment."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.client("s3")

    def names(self) -> list[str]:
        with self._refusals():
            keys = [*self._keys(), *(key for key, _ in self._uploads())]
        return sorted({key.removeprefix(self._prefix).partition("/")[0] for key in keys})

    @contextmanager
    def write(self, name: str, part: str) -> Iterator[Sink]:
        place = {"Bucket": self._bucket, "Key": f"{self._prefix}{name}/{part}"}
        with self._refusals():
            upload = _Upload(self._client, place, self._lock())
            try:
                yield upload
                upload.complete()
            except BaseException:
                upload.abort()
                raise

    @contextmanager
    def read(self, name: str, part: str) -> Iterator[Source]:
        with self._refusals():
            yield self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{part}")["Body"]

    def size(self, name: str, part: str) -> int:
        with self._refusals():
            found = self._client.head_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{part}")
            return int(found["ContentLength"])

    def delete(self, name: str, part: str = "") -> None:
        with self._refusals():
            if part:
                self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{part}")
                return
            keys = sorted(self._keys(f"{name}/"), key=lambda key: not key.endswith(MANIFEST))
            for key in keys:
                self._client.delete_object(Bucket=self._bucket, Key=key)
            for key, upload in self._uploads(f"{name}/"):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    @cached_property
    def _has_locks(self) -> bool:
        """Whether the bucket has Object Lock without a default retention."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object_lock_configuration(Bucket=self._bucket)["ObjectLockConfiguration"]
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status >= 500 and status != 501:
                raise
            return False  # no lock, not supported, or no permission to ask
        return found.get("ObjectLockEnabled") == "Enabled" and "Rule" not in found

    def _lock(self) -> dict[str, Any]:
        if not self._has_locks:
            return {}
        return {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": datetime.now(UTC) + LOCKED}

    def _keys(self, below: str = "") -> Iterator[str]:
        for page in self._pages("list_objects_v2", below):
            yield from (one["Key"] for one in page.get("Contents", ()))

    def _uploads(self, below: str = "") -> Iterator[tuple[str, str]]:
        """Yield key and id of each incomplete upload."""
        for page in self._pages("list_multipart_uploads", below):
            yield from ((one["Key"], one["UploadId"]) for one in page.get("Uploads", ()))

    def _pages(self, operation: str, below: str) -> Iterator[dict[str, Any]]:
        yield from self._client.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=self._prefix + below)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NotConnected

        try:
            yield
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
            if code in {"NoSuchKey", "404"}:  # a HEAD has no body with details
                raise Missing from error
            raise Refused(
                f"The bucket {self._bucket} refused {error.operation_name}: {message} ({code}).\n"
                "Check BACKUP_STORE, AWS_ENDPOINT_URL, and the permissions of AWS_ACCESS_KEY_ID."
            ) from error
        except (HTTPClientError, NotConnected) as error:
            raise OSError(f"cannot reach the bucket {self._bucket}: {error}") from error
        except BotoCoreError as error:
            raise Refused(f"The bucket {self._bucket} cannot be used: {error}.\nCheck the AWS_ settings.") from error


class _Upload:
    """One object, sent in parts while it is written. A small object is sent in one request."""

    def __init__(self, client: Any, place: dict[str, str], lock: dict[str, Any]) -> None:
        self._client, self._place, self._lock = client, place, lock
        self._buffer = io.BytesIO()
        self._id = ""
        self._parts: list[dict[str, Any]] = []

    def write(self, content: bytes) -> int:
        self._buffer.write(content)
        if self._buffer.tell() >= PART_BYTES:
            self._send()
        return len(content)

    def complete(self) -> None:
        if not self._id:
            self._client.put_object(**self._place, **self._lock, Body=self._buffer.getvalue())
            return
        self._send()
        self._client.complete_multipart_upload(**self._place, UploadId=self._id, MultipartUpload={"Parts": self._parts})

    def abort(self) -> None:
        if self._id:
            self._client.abort_multipart_upload(**self._place, UploadId=self._id)

    def _send(self) -> None:
        if not self._id:
            self._id = self._client.create_multipart_upload(**self._place, **self._lock)["UploadId"]
        number = len(self._parts) + 1
        self._buffer.seek(0)
        sent = self._client.upload_part(**self._place, UploadId=self._id, PartNumber=number, Body=self._buffer)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self._buffer = io.BytesIO()
