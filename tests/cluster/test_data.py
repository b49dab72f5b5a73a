"""The data on a cluster: kept when a server's pod goes, backed up each night, brought back by a command."""

import json
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import ENVIRONMENT, USERS, aegis, call, join, mailed_token, namespaced, new_address, on
from tests.conftest import PASSWORD, ROOT, wait_for

pytestmark = pytest.mark.skipif(
    ENVIRONMENT == "production", reason="not of production: CloudNativePG has its own, and the bucket is not here"
)

IDENTITY = ["--identity", str(ROOT / "knative" / "overlays" / ENVIRONMENT / "data" / "backup-identity.txt")]
"""What opens the backups; no object of the cluster has it, whoever runs these tests does."""


def test_servers_keep_their_data_when_their_pods_go() -> None:
    """Also Kafka's: an event that it has taken and nobody has read."""
    credentials, _ = join()
    newcomer = {"email": new_address(), "password": PASSWORD}
    namespaced("scale", "deployment", "dispatcher", "--replicas=0")
    try:
        namespaced("wait", "--for=delete", "pod", "-l", "app=dispatcher", "--timeout=120s")
        assert call("POST", USERS, newcomer)[0] == 202
        wait_for(lambda: on("postgres-0", "SELECT count(*) FROM outbox WHERE sent_at IS NULL") == "0", seconds=60)
        before = volumes()
        for server in ("postgres", "kafka"):
            namespaced("delete", "pod", f"{server}-0")
            namespaced("rollout", "status", f"statefulset/{server}", "--timeout=300s")
        assert volumes() == before
        wait_for(lambda: call("POST", f"{USERS}/login", credentials)[0] == 200, seconds=60)
    finally:
        namespaced("scale", "deployment", "dispatcher", "--replicas=1")
    assert mailed_token(newcomer["email"], seconds=120)


def volumes() -> str:
    """Each claim with the volume that it is bound to."""
    shown = "jsonpath={range .items[*]}{.metadata.name} {.spec.volumeName},{end}"
    return namespaced("get", "persistentvolumeclaims", "-o", shown)


def test_the_cron_job_takes_a_backup_when_its_time_comes() -> None:
    before = set(backups())
    schedule = namespaced("get", "cronjob", "backup", "-o", "jsonpath={.spec.schedule}")
    last = "jsonpath={.status.lastSuccessfulTime}"
    succeeded = namespaced("get", "cronjob", "backup", "-o", last)
    set_schedule("* * * * *")
    try:
        wait_for(lambda: namespaced("get", "cronjob", "backup", "-o", last) != succeeded, seconds=180)
    finally:
        set_schedule(schedule)
    wait_for(lambda: not namespaced("get", "cronjob", "backup", "-o", "jsonpath={.status.active}"), seconds=60)
    assert set(backups()) > before


def set_schedule(schedule: str) -> None:
    namespaced("patch", "cronjob", "backup", "--patch", json.dumps({"spec": {"schedule": schedule}}))


def test_a_restore_brings_back_what_was_there_and_ends_every_session() -> None:
    credentials, token = join()
    taken = operated("backup")
    assert "read back and found good" in taken
    newcomer, _ = join()
    print(taken, operated("restore", "latest", "--force", *IDENTITY))
    known = namespaced("get", "jobs,pods,events", "-o", "json")
    known += namespaced("logs", "--selector=batch.kubernetes.io/job-name", "--tail=-1", "--prefix")
    assert not any(one in known for one in Path(IDENTITY[1]).read_text().split())
    wait_for(lambda: call("GET", f"{USERS}/me", Authorization=f"Bearer {token}")[0] == 401, seconds=90)
    assert call("POST", f"{USERS}/login", credentials)[0] == 200
    assert call("POST", f"{USERS}/login", newcomer)[0] == 401


def test_a_restore_that_is_refused_says_why_and_changes_nothing() -> None:
    credentials, _ = join()
    for arguments, reason in ((["latest"], "--force"), (["20200101T000000Z", "--force"], "There is no backup")):
        done = aegis("restore", *arguments, *IDENTITY, "--in-cluster")
        assert (done.returncode, reason in done.stderr) == (1, True), done.stderr
    assert call("POST", f"{USERS}/login", credentials)[0] == 200


def test_the_latest_backup_passes_a_drill() -> None:
    operated("backup")
    started = time.monotonic()
    # In staging the drill has an identity of its own, as each week.
    said = operated("drill", *([] if ENVIRONMENT == "staging" else IDENTITY))
    print(f"{said}\nin {time.monotonic() - started:.0f} s")
    assert "hours old and good" in said
    assert on("postgres-0", "SELECT count(*) FROM pg_database WHERE datname LIKE 'aegis_drill%'") == "0"


def operated(*arguments: str) -> str:
    """What a command of backups says in the cluster; it has succeeded."""
    done = aegis(*arguments, "--in-cluster")
    assert done.returncode == 0, done.stderr
    return done.stdout


def backups() -> list[str]:
    """The names of those that there are."""
    return [line.split()[0] for line in operated("backups").splitlines() if line[:1].isdigit()]
