"""The command of those who run the service."""

import base64
import fcntl
import io
import itertools
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from knative.local.keys import new_signing_keys, write_secrets
from knative.local.supervisor import Process
from knative.release import aegis
from knative.release.signing_keys import SECRET, TOKEN_SECONDS
from shared import access_tokens, settings
from shared.database import transaction
from shared.tables import account, credential, outbox
from tests.conftest import DATA, PASSWORD, ROOT, User, call, create_user, events_of, log_in
from tests.servers import kill

SETTINGS = ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS", "DB_HOST", "REDIS_HOST")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without the settings of this one."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-m", "knative.release.aegis", *arguments],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def refusal(*arguments: str) -> str:
    """What the command says when it does not do it."""
    with pytest.raises(SystemExit) as ended:
        aegis.main(arguments)
    assert isinstance(ended.value.code, str)
    return ended.value.code


# --- administrators


def find(address: str) -> Any:
    query = (
        select(account, credential.c.password_hash)
        .outerjoin_from(account, credential)
        .where(account.c.canonical_email == address)
    )
    with transaction() as connection:
        return connection.execute(query).one()


def user_at(address: str) -> User:
    return User(find(address).id, address)


def test_a_new_administrator_has_no_password_and_is_sent_a_link(address: str, capsys: Any) -> None:
    aegis.main(["admin", "create", address, "--locale", "en"])
    made = find(address)
    assert (made.status, made.roles, made.locale, made.password_hash) == ("active", ["admin"], "en", None)
    assert events_of(user_at(address)) == ["roles_changed", "password_reset_requested"]
    assert str(made.id) in capsys.readouterr().out
    with transaction() as connection:
        event = connection.scalars(select(outbox.c.data).where(outbox.c.subject == made.id).limit(1)).one()
    assert event == {"user_id": str(made.id), "roles": ["admin"], "actor_id": None}


def test_a_second_call_only_sends_another_link(address: str, capsys: Any) -> None:
    for _ in range(2):
        aegis.main(["admin", "create", address])
    assert events_of(user_at(address)) == ["roles_changed", "password_reset_requested", "password_reset_requested"]
    assert "no password yet" in capsys.readouterr().out


def test_an_active_account_gets_the_role_and_its_sessions_end(active_user: User) -> None:
    theirs = log_in(active_user)
    assert call("get_profile", theirs).status_code == 200
    aegis.main(["admin", "create", active_user.email.upper()])
    assert call("get_profile", theirs).status_code == 401
    assert events_of(active_user) == ["logged_in", "roles_changed"]
    again = log_in(active_user)
    assert call("get_profile", again).json["roles"] == ["admin"]
    aegis.main(["admin", "create", active_user.email])
    assert call("get_profile", again).status_code == 200
    assert events_of(active_user)[2:] == ["logged_in"]


def test_nothing_comes_into_force_that_a_stranger_chose_for_the_address(address: str) -> None:
    stranger = create_user(address, "pending")
    aegis.main(["admin", "create", address])
    made = find(address)
    assert (made.id, made.status, made.roles, made.name) == (stranger.id, "active", ["admin"], None)
    assert made.password_hash is None
    assert call("login", body={"email": address, "password": PASSWORD}).status_code == 401


@pytest.mark.parametrize(("status", "advice"), [("suspended", "reinstate"), ("withdrawn", "logging in")])
def test_an_account_that_is_not_active_is_refused_with_advice(address: str, status: str, advice: str) -> None:
    user = create_user(address, status)
    text = refusal("admin", "create", address)
    assert (status in text, advice in text) == (True, True)
    assert (find(address).roles, events_of(user)) == ([], [])


def test_made_twice_at_once_it_is_one_administrator(address: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(aegis.main, [["admin", "create", address]] * 3))
    assert events_of(user_at(address)).count("roles_changed") == 1


def test_a_malformed_address_is_named() -> None:
    assert "'nobody' is not an e-mail address" in refusal("admin", "create", "nobody")


def test_the_settings_of_the_running_service_are_found(address: str) -> None:
    done = run("admin", "create", address, DATA_DIR=str(DATA))
    assert (done.returncode, done.stderr) == (0, "")
    assert find(address).roles == ["admin"]


def test_without_a_service_it_says_what_to_start(tmp_path: Path) -> None:
    done = run("admin", "create", "kim@example.com", DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "DATABASE_URL is not set" in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_missing_settings_are_listed(tmp_path: Path) -> None:
    done = run("admin", "create", "kim@example.com", DATABASE_URL="mysql://h/x", DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert {"REDIS_URL is not set (cache needs it)", "DATABASE_URL is not a URL with postgresql"} <= set(
        done.stderr.splitlines()
    )


def test_a_database_that_is_away_is_named_without_its_password(own_database: Process) -> None:
    kill(own_database)
    url = os.environ["DATABASE_URL"]
    text = refusal("admin", "create", "kim@example.com")
    assert url.rpartition("@")[2] in text
    assert "cannot be reached" in text
    assert url.rpartition("@")[0].rpartition(":")[2] not in text


def test_a_database_without_tables_is_told_to_be_migrated(own_database: Process) -> None:
    with transaction() as connection:
        connection.exec_driver_sql("DROP TABLE account CASCADE")
    assert "python -m shared.migrate" in refusal("admin", "create", "kim@example.com")


def test_a_wrong_call_is_a_2() -> None:
    for arguments in ([], ["admin"], ["admin", "create"], ["keys", "rotate", "--restarted", "--cluster", "-"]):
        with pytest.raises(SystemExit) as ended:
            aegis.main(arguments)
        assert ended.value.code == 2


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "aegis", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "admin" in done.stdout


# --- signing keys


@contextmanager
def process(keys: list[dict[str, Any]]) -> Iterator[None]:
    """This process as one that started with these keys."""

    def start(value: str) -> None:
        os.environ["JWT_SECRET_KEY"] = value
        for remembered in (settings.settings, access_tokens._private_key, access_tokens._public_keys):
            remembered.cache_clear()

    before = os.environ["JWT_SECRET_KEY"]
    start(json.dumps({"keys": keys}))
    try:
        yield
    finally:
        start(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `make secrets` writes."""
    file = tmp_path / "secrets.env"
    write_secrets(file)
    return file


def keys_in(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".json":
        value = json.loads(file.read_text())["signing_keys"]
    else:
        (value,) = (line[15:] for line in file.read_text().splitlines() if line.startswith("JWT_SECRET_KEY="))
    keys: list[dict[str, Any]] = json.loads(value)["keys"]
    return keys


def rotate(file: Path, *arguments: str) -> list[dict[str, Any]]:
    aegis.main(["keys", "rotate", "--file", str(file), *arguments])
    return keys_in(file)


def let_tokens_expire(file: Path) -> None:
    """As if the last step had been so long ago."""
    keys = keys_in(file)
    earlier = [{name: value - TOKEN_SECONDS if name == "exp" else value for name, value in key.items()} for key in keys]
    file.write_text(file.read_text().replace(json.dumps({"keys": keys}), json.dumps({"keys": earlier})))


def all_steps(file: Path) -> list[list[dict[str, Any]]]:
    """The keys before a rotation and after each of its steps."""
    steps = [keys_in(file), *(rotate(file, "--restarted") for _ in range(3))]
    let_tokens_expire(file)
    return [*steps, rotate(file)]


def test_a_rotation_logs_nobody_out(active_user: User, file: Path) -> None:
    steps = all_steps(file)
    with process(steps[0]):
        before = log_in(active_user)
    refresh_token, issued = before["refresh_token"], [before["access_token"]]
    for earlier, later in itertools.pairwise(steps):
        with process(later):
            # What was issued before the rotation holds until its key is dropped, when it has long expired.
            if later is not steps[-1]:
                assert call("get_profile", before).status_code == 200
            answer = call("refresh_token", body={"refresh_token": refresh_token})
            assert answer.status_code == 200
            refresh_token, issued = answer.json["refresh_token"], [*issued, answer.json["access_token"]]
            if later is not steps[-1]:
                assert call("get_profile", {"access_token": issued[-2]}).status_code == 200
        # While processes start again one by one, one that has not yet takes what one issues that has.
        with process(earlier):
            assert call("get_profile", {"access_token": issued[-1]}).status_code == 200


def test_the_new_key_is_known_before_it_signs_and_the_old_one_stays_as_long_as_its_tokens(file: Path) -> None:
    started = int(time.time())
    one, two, three, four, five = all_steps(file)
    (old,), (_, new) = one, two
    assert two[0] == old
    assert new["iat"] >= started
    assert "nbf" not in new
    assert [key["kid"] for key in three] == [new["kid"], old["kid"]]
    assert three[0]["nbf"] >= new["iat"]
    assert [key["kid"] for key in four] == [new["kid"], old["kid"]]
    assert four[1]["exp"] >= three[0]["nbf"] + TOKEN_SECONDS
    assert five == [three[0]]
    assert [key["kid"] for key in all_steps(file)[-1]] != [new["kid"]]


def test_a_step_that_is_not_safe_changes_nothing(file: Path) -> None:
    rotate(file)
    for _ in range(2):
        before = file.read_bytes()
        text = refusal("keys", "rotate", "--file", str(file))
        assert "--cluster -" in text
        assert "--restarted" in text
        assert file.read_bytes() == before
        rotate(file, "--restarted")
    before = file.read_bytes()
    (at,) = (key["exp"] for key in keys_in(file)[1:])
    assert datetime.fromtimestamp(at, UTC).isoformat() in refusal("keys", "rotate", "--file", str(file), "--restarted")
    assert file.read_bytes() == before


def test_the_other_secrets_stay_and_only_the_owner_reads_the_file(file: Path) -> None:
    file.write_text("# ours\n" + file.read_text())
    file.chmod(0o644)
    before = file.read_text().splitlines()
    rotate(file)
    after = file.read_text().splitlines()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    differing = [line.partition("=")[0] for line, other in zip(before, after, strict=True) if line != other]
    assert differing == ["JWT_SECRET_KEY"]


def test_no_key_is_shown(file: Path, capsys: Any) -> None:
    steps = all_steps(file)
    shown = capsys.readouterr().out
    assert not any(key["d"] in shown for keys in steps for key in keys)


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "has no JWT_SECRET_KEY"), ("JWT_SECRET_KEY=\n", "has no JWT_SECRET_KEY"), ("JWT_SECRET_KEY={}\n", "JWK Set")],
)
def test_a_file_without_keys_is_named_and_stays(file: Path, content: str, says: str) -> None:
    file.write_text(content)
    text = refusal("keys", "rotate", "--file", str(file))
    assert says in text
    assert str(file) in text
    assert file.read_text() == content


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "make secrets" in refusal("keys", "rotate", "--file", str(tmp_path / "secrets.env"))


def test_of_two_commands_at_once_one_makes_the_step(file: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            rotate(file)
        except SystemExit:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == [False, False, False, True]
    assert len(keys_in(file)) == 2


# --- next to make up


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder as `make up` leaves it."""
    (tmp_path / "secrets.json").write_text(json.dumps({"refresh_key": "x", "signing_keys": new_signing_keys()}))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


@contextmanager
def running(data: Path, *, ago: int = 0) -> Iterator[None]:
    """As if `make up` had been started on the folder so many seconds ago, and had read its secrets."""
    environment = data / "environment.json"
    environment.write_text(json.dumps({"JWT_SECRET_KEY": json.dumps({"keys": keys_in(data / "secrets.json")})}))
    os.utime(environment, (time.time() - ago, time.time() - ago))
    with (data / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        environment.unlink()


def local_step() -> None:
    aegis.main(["keys", "rotate"])


def test_next_to_make_up_each_step_waits_for_a_restart(data: Path) -> None:
    file = data / "secrets.json"
    (old,) = keys_in(file)
    with running(data):
        local_step()
        assert "Start make up again" in refusal("keys", "rotate")
    with running(data):
        local_step()
        assert keys_in(file)[1] == old
        assert "Start make up again" in refusal("keys", "rotate")
    with running(data, ago=TOKEN_SECONDS + 1):
        local_step()
        assert [key["kid"] for key in keys_in(file)] != [old["kid"]]
        assert len(keys_in(file)) == 1
    assert json.loads(file.read_text())["refresh_key"] == "x"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_service_that_does_not_run_reads_the_keys_when_it_starts(data: Path) -> None:
    old, *_ = keys_in(data / "secrets.json")
    for _ in range(3):
        local_step()
    signing, retired = keys_in(data / "secrets.json")
    assert (signing["kid"] != old["kid"], retired["kid"]) == (True, old["kid"])
    assert retired["exp"] > time.time()


def test_while_the_service_starts_nothing_is_changed(data: Path) -> None:
    before = (data / "secrets.json").read_bytes()
    with running(data):
        (data / "environment.json").rename(data / "elsewhere")
        assert "starting or stopping" in refusal("keys", "rotate")
        (data / "elsewhere").rename(data / "environment.json")
    assert (data / "secrets.json").read_bytes() == before


# --- in a cluster


def evidence(keys: list[dict[str, Any]], *starts: int | None, changed: int = 0) -> str:
    """What kubectl prints of a Secret that was changed at a second, and of pods that started at others."""

    def at(seconds: int) -> str:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    value = base64.b64encode(json.dumps({"keys": keys}).encode()).decode()
    fields = [{"manager": "kubectl", "time": at(0)}, {"manager": "kubectl-client-side-apply", "time": at(changed)}]
    secret = {
        "kind": "Secret",
        "metadata": {"name": SECRET, "managedFields": fields},
        "data": {"JWT_SECRET_KEY": value},
    }
    relay = {"kind": "Pod", "metadata": {"name": "relay", "labels": {"app": "relay"}}, "status": {"startTime": at(0)}}
    pods = [
        {
            "kind": "Pod",
            "metadata": {"name": f"login-{number}", "labels": {"serving.knative.dev/revision": "login-00001"}},
            "status": {} if start is None else {"startTime": at(start)},
        }
        for number, start in enumerate(starts)
    ]
    return json.dumps({"kind": "List", "items": [secret, relay, *pods]})


def with_input(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize("starts", [(), (101,), (101, 102), (None,)], ids=str)
def test_a_step_is_made_when_all_pods_are_newer_than_the_secret(
    file: Path, monkeypatch: pytest.MonkeyPatch, starts: tuple[int | None, ...]
) -> None:
    two = rotate(file)
    with_input(monkeypatch, evidence(two, *starts, changed=100))
    three = rotate(file, "--cluster", "-")
    assert three[0]["kid"] == two[1]["kid"]


@pytest.mark.parametrize("starts", [(99,), (100,), (99, 101)], ids=str)
def test_a_pod_that_may_have_older_keys_stops_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, starts: tuple[int, ...]
) -> None:
    two = rotate(file)
    with_input(monkeypatch, evidence(two, *starts, changed=100))
    assert "login-0" in refusal("keys", "rotate", "--file", str(file), "--cluster", "-")
    assert keys_in(file) == two


def test_a_secret_that_was_not_applied_stops_it(file: Path, tmp_path: Path) -> None:
    one = keys_in(file)
    two = rotate(file)
    said = tmp_path / "evidence.json"
    said.write_text(evidence(one, 101, changed=100))
    assert "apply it" in refusal("keys", "rotate", "--file", str(file), "--cluster", str(said))
    assert keys_in(file) == two


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"items": []}', '{"items": [{}]}', '{"items": [1]}'])
def test_other_words_of_kubectl_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    two = rotate(file)
    with_input(monkeypatch, text)
    assert "--show-managed-fields" in refusal("keys", "rotate", "--file", str(file), "--cluster", "-")
    assert keys_in(file) == two
