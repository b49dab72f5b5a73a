"""Where backups are: a bucket does as a folder does. The bucket is moto's, on loopback."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from knative.local.servers import LOOPBACK, free_port
from knative.operations.backup import store
from knative.operations.backup.store import BEGUN, DUMP, MANIFEST, PURGED, Bucket, Folder, Missing, Store
from tests.knative.test_backup import ACCOUNTS, accounts, backup, bring_back, filled, new_database, new_vault, refusal

__all__ = ["filled"]

NAMES = ["20260101T170000Z", "20260102T170000Z"]
LEAST_PART_BYTES = 5 * 2**20
"""Of S3, for all parts of an upload but the last."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(LOOPBACK, free_port(), verbose=False)
    server.start()
    yield f"http://{LOOPBACK}:{server._port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, in which others have something, too."""
    settings = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{secrets.token_hex(6)}"
    boto3.client("s3").create_bucket(Bucket=name)
    boto3.client("s3").put_object(Bucket=name, Key="of-others/20260103T170000Z/manifest.json", Body=b"{}")
    return Bucket(f"s3://{name}/aegis/production")


@pytest.fixture
def locking(bucket: Bucket) -> Bucket:
    """A bucket with Object Lock (so with versions) and no retention of its own."""
    name = f"bucket-{secrets.token_hex(6)}"
    boto3.client("s3").create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return Bucket(f"s3://{name}/aegis/production")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Folder(tmp_path / "backups") if request.param == "folder" else request.getfixturevalue("bucket")


def write(place: Store, name: str, part: str, content: bytes) -> None:
    with place.write(name, part) as sink:
        sink.write(content)


def read(place: Store, name: str, part: str) -> bytes:
    with place.read(name, part) as source:
        return source.read(2**30)


def test_what_is_written_is_there_until_it_is_deleted(place: Store) -> None:
    assert place.names() == []
    for name in reversed(NAMES):
        write(place, name, DUMP, name.encode())
        write(place, name, MANIFEST, b"{}")
    assert place.names() == NAMES
    assert place.size(NAMES[0], DUMP) == len(NAMES[0])
    assert read(place, NAMES[0], DUMP) == NAMES[0].encode()
    with pytest.raises(Missing):
        read(place, NAMES[0], "purged.age")
    place.delete(NAMES[0])
    assert place.names() == NAMES[1:]
    with pytest.raises(Missing):
        read(place, NAMES[0], DUMP)


def test_what_fails_half_way_is_not_there(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", LEAST_PART_BYTES)

    def fail() -> None:
        with place.write(NAMES[0], DUMP) as sink:
            sink.write(bytes(LEAST_PART_BYTES + 1))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    with pytest.raises(Missing):
        read(place, NAMES[0], DUMP)
    with pytest.raises(Missing):
        place.size(NAMES[0], DUMP)


def test_a_large_object_is_sent_in_parts(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", LEAST_PART_BYTES)
    content = secrets.token_bytes(2 * LEAST_PART_BYTES + 1000)
    with bucket.write(NAMES[0], DUMP) as sink:
        for begin in range(0, len(content), 2**16):
            sink.write(content[begin : begin + 2**16])
    assert read(bucket, NAMES[0], DUMP) == content
    key = f"aegis/production/{NAMES[0]}/{DUMP}"
    tag = boto3.client("s3").head_object(Bucket=bucket._bucket, Key=key)["ETag"]
    assert tag.strip('"').endswith("-3")


def test_an_upload_that_died_is_seen_and_deleted(bucket: Bucket) -> None:
    """As it costs money, and no list of objects shows it."""
    client: Any = boto3.client("s3")
    key = f"aegis/production/{NAMES[0]}/{DUMP}"
    client.create_multipart_upload(Bucket=bucket._bucket, Key=key)
    assert bucket.names() == NAMES[:1]
    bucket.delete(NAMES[0])
    assert bucket.names() == []
    assert client.list_multipart_uploads(Bucket=bucket._bucket).get("Uploads", []) == []


def test_a_bucket_that_is_not_there_or_cannot_be_reached_is_said(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not exist" in refusal(lambda: Bucket("s3://no-such-bucket").names())
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(OSError, match="cannot reach the bucket"):
        Bucket(f"s3://{bucket._bucket}").names()


def test_a_backup_goes_into_a_bucket_and_comes_back(filled: str, bucket: Bucket) -> None:
    vault = new_vault(bucket)
    made = backup(filled, vault)
    assert bucket.names() == [made.name]
    with new_database() as url:
        bring_back(vault, url)
        assert len(accounts(url)) == ACCOUNTS


# --- Object Lock


def retained(bucket: Bucket, name: str, part: str) -> tuple[str, float]:
    """The mode of an object's lock, and for how many days it is locked."""
    key = f"{bucket._prefix}{name}/{part}"
    found = boto3.client("s3").head_object(Bucket=bucket._bucket, Key=key)
    return found["ObjectLockMode"], (found["ObjectLockRetainUntilDate"] - datetime.now(UTC)).total_seconds() / 86_400


def test_where_a_bucket_has_object_lock_nobody_can_delete_a_backup_for_thirty_days(
    filled: str, locking: Bucket
) -> None:
    vault = new_vault(locking)
    made = backup(filled, vault)
    for part in (DUMP, PURGED, MANIFEST):
        mode, days = retained(locking, made.name, part)
        assert mode == "COMPLIANCE"
        assert 29.9 < days <= 30
    client = boto3.client("s3")
    place = {"Bucket": locking._bucket, "Key": f"{locking._prefix}{made.name}/{DUMP}"}
    version = client.head_object(**place)["VersionId"]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(**place, VersionId=version)


def test_a_large_object_is_locked_from_its_first_part_on(locking: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto keeps no lock of such an upload: what S3 is sent is looked at instead."""
    monkeypatch.setattr(store, "PART_BYTES", LEAST_PART_BYTES)
    sent: list[Any] = []
    locking._client.meta.events.register(
        "before-call.s3.CreateMultipartUpload", lambda params, **_: sent.append(params["headers"])
    )
    with locking.write(NAMES[0], DUMP) as sink:
        sink.write(bytes(LEAST_PART_BYTES))
    (headers,) = sent
    assert headers["x-amz-object-lock-mode"] == "COMPLIANCE"
    assert headers["x-amz-object-lock-retain-until-date"]


def test_a_locked_backup_goes_from_the_list_and_can_be_brought_back(filled: str, locking: Bucket) -> None:
    """Deleting without a version only hides it, so that retention works; and whoever hides all has deleted nothing."""
    vault = new_vault(locking)
    made = backup(filled, vault)
    locking.delete(made.name)
    assert locking.names() == []
    client = boto3.client("s3")
    for marker in client.list_object_versions(Bucket=locking._bucket)["DeleteMarkers"]:
        if not marker["Key"].endswith(BEGUN):
            client.delete_object(Bucket=locking._bucket, Key=marker["Key"], VersionId=marker["VersionId"])
    with new_database() as url:
        bring_back(vault, url)
        assert len(accounts(url)) == ACCOUNTS


def test_a_bucket_with_a_retention_of_its_own_keeps_to_that(locking: Bucket) -> None:
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 90}}
    boto3.client("s3").put_object_lock_configuration(
        Bucket=locking._bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    write(locking, NAMES[0], MANIFEST, b"{}")
    mode, days = retained(locking, NAMES[0], MANIFEST)
    assert mode == "GOVERNANCE"
    assert 89.9 < days <= 90
