"""Who gives an identity to a command of backups: it reaches the pod's standard input, and nothing else."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyrage
import pytest

from knative.operations.backup import identity, in_cluster
from tests.conftest import ROOT, wait_for
from tests.knative.test_backup import new_vault, refusal

pytestmark = pytest.mark.no_service

CONTEXT, POD = "a-context", "restore-20260131-170000-abcde"


def new_identity() -> str:
    return str(pyrage.x25519.Identity.generate())


def test_a_file_may_hold_several_identities_as_age_keygen_writes_them(tmp_path: Path) -> None:
    first, second, void = new_identity(), new_identity(), new_identity()
    file = tmp_path / "identities.txt"
    file.write_text(f"# created: 2026-01-31T17:00:00Z\n# public key: age1\n{first}\n\n# {void}\n{second}\r\n")
    assert identity.read(str(file)) == (first, second)


@pytest.mark.parametrize("content", [b"", b"# public key: age1\n", b"\xff\xfe", None])
def test_a_file_without_an_identity_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "identity.txt"
    if content is not None:
        file.write_bytes(content)
    assert "identity" in refusal(lambda: identity.read(str(file)))


def kubectl(tmp_path: Path, does: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a program in place of kubectl; returns the file with the arguments that it gets."""
    program, arguments = tmp_path / "kubectl", tmp_path / "arguments"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {arguments}\n{does}\n')
    program.chmod(0o755)
    monkeypatch.setattr(in_cluster, "KUBECTL", program)
    return arguments


def test_an_identity_reaches_the_command_in_a_pod_by_its_standard_input_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = new_vault(tmp_path / "backups")
    settings = {
        "BACKUP_STORE": str(tmp_path / "backups"),
        "BACKUP_RECIPIENTS": vault.recipients[0],
        "BACKUP_MANIFEST_KEY": vault.manifest_keys[0].decode(),
    }
    log = tmp_path / "log"
    of_the_pod = [sys.executable, "-m", "knative.aegis", "restore", "latest", "--force", "--identity", "-"]
    variables = " ".join(f"{name}={value}" for name, value in settings.items())
    command = f"cd {ROOT} && env {variables} {shlex.join(of_the_pod)} 2>&1 | tee {log}"
    arguments = kubectl(tmp_path, command, monkeypatch)
    given = new_identity(), new_identity()
    in_cluster.hand_over(CONTEXT, POD, given)
    assert arguments.read_text().split()[-1] == POD
    wait_for(lambda: identity.TAKEN in log.read_text())  # tee passes a line on before it has written it
    for one in given:
        assert one not in arguments.read_text() + log.read_text()


def test_a_pod_that_does_not_take_an_identity_is_said_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl(tmp_path, "echo 'pods is forbidden: User may not create pods/attach' >&2; exit 1", monkeypatch)
    given = new_identity()
    said = refusal(lambda: in_cluster.hand_over(CONTEXT, POD, (given,)))
    assert "pods/attach" in said
    assert given not in said


def test_a_restore_without_an_identity_says_how_to_give_one(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "backups")
    environment = {
        **os.environ,
        "BACKUP_STORE": str(tmp_path),
        "BACKUP_RECIPIENTS": vault.recipients[0],
        "BACKUP_MANIFEST_KEY": vault.manifest_keys[0].decode(),
        "BACKUP_IDENTITY": "",
    }
    command = [sys.executable, "-m", "knative.aegis", "restore", "latest"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "--identity FILE" in done.stderr) == (1, True)
