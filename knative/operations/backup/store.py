"""Where backups are: a folder (a volume), or a bucket of S3 or of what speaks its protocol.

NAME/dump.age        what pg_dump wrote, encrypted
NAME/purged.age      ids of the accounts that were purged until then, encrypted
NAME/manifest.json   written last: without it there is no backup
NAME/begun.json      there while it is written
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
"""Of a large object in a bucket, which may have 10,000 of them; one is in memory at a time."""
LOCKED = timedelta(days=30)
"""Nobody can delete or change what is written to a bucket for so long, where the bucket has Object Lock."""


class Missing(Exception):
    """There is no such object."""


class Store(Protocol):
    def names(self) -> list[str]:
        """Of all that is there, in order; also of what died half-way, which has no manifest."""

    @contextmanager
    def write(self, name: str, part: str) -> Iterator[Sink]:
        """What is written in the block is there at its end, as a whole; and not at all when the block raises."""

    @contextmanager
    def read(self, name: str, part: str) -> Iterator[Source]:
        """Raises Missing."""

    def size(self, name: str, part: str) -> int:
        """In bytes. Raises Missing."""

    def delete(self, name: str, part: str = "") -> None:
        """Deletes one object of a name, or all of it, its manifest first."""


class Vault(NamedTuple):
    """A store, and the keys of what is in it.

    Attributes:
        manifest_keys: manifests are authenticated under the first, and taken under each.
        recipients: whom backups are encrypted to (age, X25519).
        identities: what opens them; none where they are only taken and listed.
    """

    store: Store
    manifest_keys: tuple[bytes, ...]
    recipients: tuple[str, ...]
    identities: tuple[str, ...] = ()


def opened(address: str) -> Store:
    """The store of the setting BACKUP_STORE."""
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
        # To open a pipe would wait for ever.
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
    """Makes the names in a folder outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Bucket:
    """Credentials and, for what is not Amazon's, AWS_ENDPOINT_URL are taken from the environment as boto3 does."""

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
        """Whether it has Object Lock, and no retention of its own for what does not ask for one."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object_lock_configuration(Bucket=self._bucket)["ObjectLockConfiguration"]
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status >= 500 and status != 501:
                raise
            return False  # it has none, or does not know what that is, or the key may not ask
        return found.get("ObjectLockEnabled") == "Enabled" and "Rule" not in found

    def _lock(self) -> dict[str, Any]:
        if not self._has_locks:
            return {}
        return {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": datetime.now(UTC) + LOCKED}

    def _keys(self, below: str = "") -> Iterator[str]:
        for page in self._pages("list_objects_v2", below):
            yield from (one["Key"] for one in page.get("Contents", ()))

    def _uploads(self, below: str = "") -> Iterator[tuple[str, str]]:
        """Key and id of each upload that nobody completed."""
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
            if code in {"NoSuchKey", "404"}:  # a HEAD has no body that says more
                raise Missing from error
            raise Refused(
                f"The bucket {self._bucket} refuses {error.operation_name}: {message} ({code}).\n"
                "Check BACKUP_STORE, AWS_ENDPOINT_URL, and the permissions of AWS_ACCESS_KEY_ID."
            ) from error
        except (HTTPClientError, NotConnected) as error:
            raise OSError(f"the bucket {self._bucket} cannot be reached: {error}") from error
        except BotoCoreError as error:
            raise Refused(f"The bucket {self._bucket} cannot be used: {error}.\nCheck the AWS_ settings.") from error


class _Upload:
    """One object, sent in parts as it is written; small ones in one request."""

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
