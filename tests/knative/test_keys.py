"""The secrets of a development environment."""

import json
import stat
from pathlib import Path

import pytest

from knative.keys import new_backup_key, recipient_of, write_secrets
from shared.runtime.settings import load

pytestmark = pytest.mark.no_service


def read(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def test_new_secrets_are_readable_by_their_owner_alone_and_taken_by_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    write_secrets(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load(
        {**read(file), "PUBLIC_URL": "https://api.example.com"}, ["access_tokens", "refresh_tokens", "encryption"]
    )


def test_the_identity_that_opens_backups_is_in_no_file_that_goes_into_a_cluster(tmp_path: Path) -> None:
    write_secrets(tmp_path / "secrets.env")
    files = {"secrets.env", "gateway.env", "owner.env", "backup.env", "backup-identity.txt"}
    assert {file.name for file in tmp_path.iterdir()} == files
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    identity = (tmp_path / "backup-identity.txt").read_text().strip()
    for name in ("secrets.env", "backup.env"):
        assert "AGE-SECRET-KEY" not in (tmp_path / name).read_text()
    of_backups = read(tmp_path / "backup.env")
    assert of_backups["BACKUP_RECIPIENTS"] == recipient_of(identity)
    assert load({**of_backups, "BACKUP_STORE": "/backups"}, ["backups"])


def test_the_gateway_sends_the_first_of_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    write_secrets(file)
    old = read(file)["GATEWAY_KEY"]
    assert read(tmp_path / "gateway.env") == {"credential": old}
    new = "n" * 32
    for keys, sent in ((f"{old},{new}", old), (f" {new} , {old}", new), (new, new)):
        file.write_text(file.read_text().replace(f"GATEWAY_KEY={read(file)['GATEWAY_KEY']}", f"GATEWAY_KEY={keys}"))
        write_secrets(file)
        assert read(tmp_path / "gateway.env") == {"credential": sent}
        assert sent.encode() in load(read(file)).gateway_keys
    assert write_secrets(file) == []


def test_an_environment_with_drills_has_an_identity_for_them_that_is_not_the_operators(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("secretGenerator: [{name: drill-secrets, envs: [drill.env]}]")
    write_secrets(tmp_path / "secrets.env")
    of_the_drill = read(tmp_path / "drill.env")["BACKUP_IDENTITY"]
    operators = (tmp_path / "backup-identity.txt").read_text().strip()
    recipients = read(tmp_path / "backup.env")["BACKUP_RECIPIENTS"].split(",")
    assert recipients == [recipient_of(operators), recipient_of(of_the_drill)]
    assert operators != of_the_drill


def test_no_other_identity_is_made_once_the_operator_has_taken_it_away(tmp_path: Path) -> None:
    write_secrets(tmp_path / "secrets.env")
    (tmp_path / "backup-identity.txt").unlink()
    assert write_secrets(tmp_path / "secrets.env") == []
    assert not (tmp_path / "backup-identity.txt").exists()


def test_new_keys_of_backups_leave_the_identity_that_opens_the_old_ones(tmp_path: Path) -> None:
    write_secrets(tmp_path / "secrets.env")
    (tmp_path / "backup.env").unlink()
    write_secrets(tmp_path / "secrets.env")
    old, new = (tmp_path / "backup-identity.txt").read_text().split()
    assert read(tmp_path / "backup.env")["BACKUP_RECIPIENTS"] == recipient_of(new) != recipient_of(old)


def test_the_private_key_of_an_earlier_release_is_moved_to_the_operator_and_still_opens_backups(tmp_path: Path) -> None:
    identity = new_backup_key()
    (tmp_path / "backup.env").write_text(f"BACKUP_KEY={identity}\nAWS_ACCESS_KEY_ID=id\n")
    write_secrets(tmp_path / "secrets.env")
    assert (tmp_path / "backup-identity.txt").read_text().strip() == identity
    of_backups = read(tmp_path / "backup.env")
    assert of_backups["BACKUP_RECIPIENTS"] == recipient_of(identity)
    assert "BACKUP_KEY" not in of_backups
    assert of_backups["AWS_ACCESS_KEY_ID"] == "id"


def test_a_file_of_an_earlier_version_gets_what_it_lacks_and_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    file.write_text("DB_USER=aegis_functions\nDB_PASSWORD=kept\n")
    assert write_secrets(file)[0] == "JWT_SECRET_KEY"
    assert read(file)["DB_PASSWORD"] == "kept"
    assert write_secrets(file) == []


def test_the_login_that_functions_had_becomes_the_owners_and_functions_get_one_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    file.write_text("DB_USER=aegis\nDB_PASSWORD=kept\nEMAIL_API_KEY=also-kept\n")
    write_secrets(file)
    assert read(tmp_path / "owner.env") == {"username": "aegis", "password": "kept"}
    assert stat.S_IMODE((tmp_path / "owner.env").stat().st_mode) == 0o600
    given = read(file)
    assert (given["DB_USER"], given["EMAIL_API_KEY"]) == ("aegis_functions", "also-kept")
    assert given["DB_PASSWORD"] not in ("", "kept")
    assert write_secrets(file) == []


def test_a_file_from_before_there_were_public_keys_gets_those_of_its_signing_keys(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    write_secrets(file)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("JWT_PUBLIC_KEYS=")]
    file.write_text("\n".join(lines) + "\n")
    assert write_secrets(file) == ["JWT_PUBLIC_KEYS"]
    (private,), (public,) = (json.loads(read(file)[name])["keys"] for name in ("JWT_SECRET_KEY", "JWT_PUBLIC_KEYS"))
    assert public == {name: value for name, value in private.items() if name != "d"}
