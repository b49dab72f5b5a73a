"""The command of those who run the service."""

import base64
import fcntl
import io
import itertools
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import pytest
from sqlalchemy import func, insert, select, update
from uuid_utils.compat import uuid7

from knative import aegis
from knative.keys import new_signing_keys, write_secrets
from knative.local.supervisor import Process
from knative.operations import dead_letters
from knative.operations.signing_keys import SECRET, TOKEN_SECONDS
from knative.terminal import Progress
from shared.events.relay import attributes
from shared.events.types import SOURCE
from shared.identity import access_tokens
from shared.postgresql import driver, partitions
from shared.postgresql.tables import account, credential, dead_letter, outbox, processed_event
from shared.postgresql.transactions import transaction
from shared.runtime import settings
from tests.authenticator import App, with_passkey, with_totp
from tests.conftest import (
    DATA,
    PASSWORD,
    ROOT,
    User,
    call,
    create_admin,
    create_user,
    events_of,
    log_in,
    session_of,
)
from tests.servers import kill

SETTINGS = ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS", "DB_HOST", "REDIS_HOST")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without the settings of this one."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-m", "knative.aegis", *arguments],
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


CODE = re.compile("(?:[0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}")


def confirmed(admin: User, code: str) -> int:
    """The status of setting up an authenticator app with a code for the first factor."""
    tokens = session_of(admin)
    app = App(call("enroll_totp", tokens).json["secret"])
    answer = call("confirm_totp", tokens, {"code": app.code(), "first_factor_code": code})
    return int(answer.status_code)


@pytest.mark.parametrize("status", ["active", "pending", None], ids=str)
def test_an_administrator_without_a_factor_sets_one_up_with_the_newest_code(
    address: str, status: str | None, capsys: Any
) -> None:
    if status:
        create_user(address, status)
    for arguments in (["create", address], ["create", address], ["code", address.upper()]):
        aegis.main(["admin", *arguments])
    *void, newest = CODE.findall(capsys.readouterr().out)
    assert len({*void, newest}) == 3
    admin = user_at(address)
    assert [confirmed(admin, code) for code in [*void, newest]] == [403, 403, 200]


@pytest.mark.parametrize("set_up", [with_totp, with_passkey])
def test_an_account_with_a_factor_gets_the_role_and_no_code(active_user: User, set_up: Any, capsys: Any) -> None:
    set_up(active_user)
    aegis.main(["admin", "create", active_user.email])
    assert not CODE.search(capsys.readouterr().out)
    assert "has a second factor" in refusal("admin", "code", active_user.email)


def test_a_code_is_for_active_administrators_alone(active_user: User, address: str) -> None:
    nobody = f"nobody-{address}"
    for email in (active_user.email, nobody):
        assert "is not an administrator" in refusal("admin", "code", email)
    assert "'nobody' is not an e-mail address" in refusal("admin", "code", "nobody")
    admin, _ = create_admin(f"admin-{address}")
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == admin.id).values(status="suspended"))
    assert "suspended" in refusal("admin", "code", admin.email)


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
    assert {"REDIS_URL is not set (cache needs it)", "DATABASE_URL is not a postgresql:// URL"} <= set(
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
    assert "python -m shared.postgresql.migrate" in refusal("admin", "create", "kim@example.com")


def test_a_wrong_call_is_a_2() -> None:
    for arguments in ([], ["admin"], ["admin", "create"], ["keys", "rotate", "--restarted", "--cluster", "-"]):
        with pytest.raises(SystemExit) as ended:
            aegis.main(arguments)
        assert ended.value.code == 2


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "aegis", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "admin" in done.stdout


# --- dead letters


def give_up(**changes: Any) -> int:
    """Stores a dead letter; returns its number."""
    id_ = str(uuid7())
    subject = str(uuid7())
    attributes = {
        "specversion": "1.0",
        "id": id_,
        "source": SOURCE,
        "type": "com.aegis.user.registered.v1",
        "subject": subject,
        "time": "2026-01-02T03:04:05.678901+00:00",
        "requestid": "the-request",
    } | changes.pop("attributes", {})
    row = {
        "function": "send_email",
        "source": attributes["source"],
        "event_id": attributes["id"],
        "type": attributes["type"],
        "attributes": attributes,
        "data": json.dumps({"user_id": subject, "locale": "ko"}).encode(),
        "content_type": "application/json",
        "error": "503 The mail provider answered 429.",
    }
    with transaction() as connection:
        keep = insert(dead_letter).values(row | changes).returning(dead_letter.c.number)
        return int(connection.execute(keep).scalar_one())


def letter(number: int) -> Any:
    with transaction() as connection:
        return connection.execute(select(dead_letter).where(dead_letter.c.number == number)).one_or_none()


def sent_again() -> list[Any]:
    """What waits in the outbox."""
    with transaction() as connection:
        return list(connection.execute(select(outbox).where(outbox.c.sent_at.is_(None))).all())


def dead(capsys: Any, *arguments: str | int) -> list[str]:
    """The lines that a command prints."""
    capsys.readouterr()
    aegis.main(["events", "dead", *map(str, arguments)])
    lines: list[str] = capsys.readouterr().out.splitlines()
    return lines


def test_the_list_shows_the_newest_first_in_columns(own_database: Process, capsys: Any) -> None:
    assert dead(capsys, "list") == ["There are no dead letters."]
    give_up()
    give_up(function="verify_business", error="400 \x1b[31mred", attributes={"type": "com.other.thing"}, count=12)
    retried = give_up(retried_at=func.now())
    head, *lines = dead(capsys, "list")
    assert head.split() == ["NUMBER", "FUNCTION", "TYPE", "LAST", "COUNT", "ERROR"]
    assert [line.split()[0] for line in lines] == ["2", "1"], "no retried one"
    assert lines[0].split()[1:3] + lines[0].split()[5:] == [
        "verify_business",
        "com.other.thing",
        "12",
        "400",
        "\ufffd[31mred",
    ]
    assert lines[1].split()[1:3] == ["send_email", "registered.v1"]
    assert lines[1].endswith("  503 The mail provider answered 429.")
    assert len({line.index(word) for line, word in zip([head, *lines], ["ERROR", "400", "503"], strict=True)}) == 1
    assert str(retried) not in "".join(lines).split()


@pytest.fixture
def function() -> str:
    """The name of a function that only this test has."""
    return f"tested_{uuid7().hex}"


def test_the_list_is_narrowed_by_function_and_type(function: str, capsys: Any) -> None:
    one, two = give_up(function=function), give_up(function=function, attributes={"type": "com.aegis.user.tested.v1"})

    def listed(*filters: str) -> list[int]:
        return [int(line.split()[0]) for line in dead(capsys, "list", *filters)[1:]]

    assert listed("--function", function) == listed("--function", function.replace("_", "-")) == [two, one]
    assert two in listed("--type", "tested.v1")
    assert one not in listed("--type", "com.aegis.user.tested.v1")
    assert listed("--function", function, "--type", "tested.v1") == [two]
    assert listed("--function", function, "--type", "tested") == []


def test_a_long_list_is_cut_and_says_so(function: str, capsys: Any) -> None:
    for _ in range(51):
        give_up(function=function)
    lines = dead(capsys, "list", "--function", function)
    assert len(lines) == 1 + 50 + 2
    assert "The newest 50 of 51." in lines[-1]


def test_a_terminal_gets_a_line_for_each_and_a_program_all_of_it(function: str, capsys: Any) -> None:
    give_up(function=function, error="503 " + "long " * 100)
    arguments = ["list", "--function", function]
    assert dead(capsys, *arguments)[1].endswith("503 " + "long " * 100)
    here, there = os.openpty()
    environment = os.environ | {"COLUMNS": "110"}
    command = [sys.executable, "-m", "knative.aegis", "events", "dead", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=there, check=True)
    head, line = os.read(here, 4096).decode().splitlines()
    assert (len(line), line[-1], head.split()[-1]) == (110, "…", "ERROR")
    os.close(here)
    os.close(there)


def test_all_that_is_kept_of_one_is_shown(capsys: Any) -> None:
    number = give_up(count=3, attributes={"odd": "a\x1bb"})
    text = "\n".join(dead(capsys, "show", number))
    row = letter(number)
    assert (
        f"number    {number}\nfunction  send_email\nerror     503 The mail provider answered 429.\ncount     3" in text
    )
    assert "retried   no" in text
    assert f"  id           {row.event_id}" in text
    assert "  odd          a\ufffdb" in text
    assert '  {\n    "user_id": "' in text


def test_a_long_name_of_an_attribute_moves_the_values_of_all(capsys: Any) -> None:
    added = {"knativekafkapartition": "2", "knativekafkaoffset": "11"}
    lines = dead(capsys, "show", give_up(attributes=added))
    assert "  knativekafkapartition  2" in lines
    assert "  knativekafkaoffset     11" in lines
    assert "  specversion            1.0" in lines


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        (b"plain\ntext", "  plain\n  text"),
        (b"\x00\xff\x10", "  00 ff 10"),
        (b'{"a": "\\u001b\xed\x95\x9c"}', '  {\n    "a": "\\u001b한"\n  }'),
        (b"[" * 50_000, "  " + "[" * 4000 + "\n  ..."),
        (b"\xff" * 1024 * 1024, "  ..."),
    ],
)
def test_data_of_any_kind_is_shown_in_what_a_terminal_can_take(capsys: Any, data: bytes, shown: str) -> None:
    text = "\n".join(dead(capsys, "show", give_up(data=data)))
    assert text.endswith(shown)
    assert len(text) < 6000
    assert text.replace("\n", "").isprintable()


def test_a_retry_lets_the_relay_send_the_event_again(own_database: Process, capsys: Any) -> None:
    held = {"id": uuid7(), "type": "tested", "subject": uuid7(), "data": {"a": 1}, "request_id": "r"}
    with transaction() as connection:
        connection.execute(insert(outbox).values(**held, sent_at=func.now()))
    number = give_up(attributes={"id": str(held["id"])})
    give_up(attributes={"id": str(held["id"])}, function="verify_business")
    assert dead(capsys, "retry", number) == ["1 put back for delivery. Events that fail again are listed again."]
    (row,) = sent_again()
    assert (row.id, row.type, row.data) == (held["id"], "tested", {"a": 1}), "as the outbox has it"
    assert letter(number).retried_at is not None
    assert [line.split()[1] for line in dead(capsys, "list")[1:]] == ["verify_business"]


def test_an_event_that_the_outbox_has_no_more_is_put_there_as_it_was(own_database: Process, capsys: Any) -> None:
    number = give_up()
    dead(capsys, "retry", number)
    row, was = sent_again()[0], letter(number)
    assert attributes(row) == {**was.attributes, "partitionkey": was.attributes["subject"]}
    assert row.data == json.loads(was.data)
    dead(capsys, "retry", number)  # once more does no harm
    assert [row.id for row in sent_again()] == [UUID(was.event_id)]


def test_a_retry_wakes_the_relay(own_database: Process, capsys: Any) -> None:
    number = give_up()
    listener, _ = driver.connect(os.environ["DATABASE_URL"], timeout=30)
    listener.autocommit = True
    listener.cursor().execute("LISTEN outbox")
    dead(capsys, "retry", number)
    listener.cursor().execute("SELECT 1")
    listener.notifications.clear()
    dead(capsys, "retry", number)  # now it is an update
    listener.cursor().execute("SELECT 1")
    assert [notification[1] for notification in listener.notifications] == ["outbox"]
    listener.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": {"source": "/elsewhere"}},
        {"attributes": {"source": ""}},
        {"attributes": {"id": "17"}},
        {"attributes": {"subject": "kim"}},
        {"attributes": {"time": "noon"}},
        {"attributes": {"time": "2026-01-02T03:04:05"}},
        {"data": b"[1]"},
        {"data": b"{"},
        {"data": b"\xff"},
        {"data": b"[" * 50_000},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_what_is_no_event_of_ours_is_not_retried_and_the_others_are(changes: dict[str, Any]) -> None:
    good, other = give_up(), give_up(**changes)
    text = refusal("events", "dead", "retry", str(other), str(good))
    assert text.startswith("1 put back for delivery.")
    assert f"{other} was not retried: " in text
    assert "then drop this one" in text
    assert (letter(good).retried_at is not None, letter(other).retried_at) == (True, None)


def test_all_takes_what_the_list_has(own_database: Process, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "BATCH", 2)
    for _ in range(5):
        give_up()
    for _ in range(3):
        give_up(function="verify_business")
    other = give_up(function="verify_business", attributes={"source": "/elsewhere"})
    assert dead(capsys, "retry", "--all", "--function", "send_email")[0].startswith("5 put back for delivery.")
    assert len(sent_again()) == 5
    assert refusal("events", "dead", "retry", "--all").startswith("3 put back for delivery.")
    assert dead(capsys, "drop", "--all", "--type", "logged_in.v1") == [
        "There are no dead letters. Nothing was changed."
    ]
    assert dead(capsys, "drop", "--all") == ["1 dropped."]
    assert letter(other) is None
    assert letter(1) is not None, "it was retried, and is not in the list"


def test_what_was_dropped_does_not_come_back(function: str) -> None:
    """When it is sent again for another function, or all events of some time are."""
    number = give_up(function=function)
    event_id = f"{SOURCE} {letter(number).event_id}"
    claimed = {"function": function, "event_id": event_id}
    with transaction() as connection:
        connection.execute(insert(processed_event).values(claimed))
    aegis.main(["events", "dead", "drop", str(number)])
    with transaction() as connection:
        query = select(processed_event.c.function).where(
            processed_event.c.event_id == event_id, processed_event.c.done_at.is_not(None)
        )
        assert connection.scalars(query).all() == [function]


def test_two_that_look_alike_are_dropped_at_once(function: str, capsys: Any) -> None:
    for source, id_ in (("a", "b c"), ("a b", "c")):
        give_up(function=function, attributes={"source": source, "id": id_})
    assert dead(capsys, "drop", "--all", "--function", function) == ["2 dropped."]


def test_what_does_not_exist_is_said() -> None:
    number, gone = give_up(), str(2**62)
    missing = f"There is no dead letter {gone}."
    assert refusal("events", "dead", "show", gone).startswith(missing)
    assert refusal("events", "dead", "retry", gone).startswith(f"Nothing was changed.\n{missing}")
    assert refusal("events", "dead", "drop", gone, str(number)).startswith(f"1 dropped.\n{missing}")
    assert letter(number) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["drop"],
        ["show"],
        ["retry", "1", "--all"],
        ["drop", "0"],
        ["drop", "-1"],
        ["show", "1e3"],
        ["show", "9" * 20],
    ],
    ids=str,
)
def test_a_call_that_leaves_open_which_is_a_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        aegis.main(["events", "dead", *arguments])
    assert ended.value.code == 2


def test_dead_letters_take_the_settings_of_a_database_alone(tmp_path: Path) -> None:
    number = give_up()
    done = run("events", "dead", "show", str(number), DATABASE_URL=os.environ["DATABASE_URL"], DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert run("events", "dead", "show", str(number), DATA_DIR=str(DATA)).stdout == done.stdout
    lost = run("events", "dead", "list", DATA_DIR=str(tmp_path))
    assert (lost.returncode, "or set DATABASE_URL." in lost.stderr) == (1, True)


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
    assert {path.name for path in file.parent.iterdir()} == {
        file.name,
        "gateway.env",
        "owner.env",
        "backup.env",
        "backup-identity.txt",
    }
    differing = [line.partition("=")[0] for line, other in zip(before, after, strict=True) if line != other]
    assert differing == ["JWT_SECRET_KEY", "JWT_PUBLIC_KEYS"]
    values = dict(line.split("=", 1) for line in after if "=" in line)
    private, public = (json.loads(values[name])["keys"] for name in ("JWT_SECRET_KEY", "JWT_PUBLIC_KEYS"))
    assert [key["kid"] for key in public] == [key["kid"] for key in private]
    assert not any("d" in key for key in public)


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
    assert "Apply the file" in refusal("keys", "rotate", "--file", str(file), "--cluster", str(said))
    assert keys_in(file) == two


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"items": []}', '{"items": [{}]}', '{"items": [1]}'])
def test_other_words_of_kubectl_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    two = rotate(file)
    with_input(monkeypatch, text)
    assert "--show-managed-fields" in refusal("keys", "rotate", "--file", str(file), "--cluster", "-")
    assert keys_in(file) == two


# --- replay


def sent_before(ago: timedelta) -> UUID:
    """An event that was sent so long ago."""
    id_ = uuid7()
    row = {"id": id_, "type": "tested", "subject": id_, "data": {}, "request_id": ""}
    with transaction() as connection:
        connection.execute(insert(outbox).values(**row, occurred_at=func.now() - ago, sent_at=func.now()))
    return id_


@pytest.mark.parametrize("since", ["2h", "120m", "a time"])
def test_what_happened_since_is_sent_again(own_database: Process, capsys: Any, since: str) -> None:
    sent_before(timedelta(hours=3))
    again = {sent_before(timedelta(hours=1)), sent_before(timedelta(minutes=1))}
    start = f"{datetime.now(UTC) - timedelta(hours=2):%Y-%m-%dT%H:%M}" if since == "a time" else since
    aegis.main(["events", "replay", "--since", start])
    assert capsys.readouterr().out.startswith("2 events since ")
    assert {row.id for row in sent_again()} == again


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ("yesterday", "neither a time"),
        ("2h30m", "neither a time"),
        ("2999-01-01T00:00Z", "in the future"),
        ("9d", "for 8 days"),
        ("2020-01-01", "for 8 days"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused_with_the_reason(since: str, reason: str) -> None:
    with pytest.raises(SystemExit, match=reason):
        aegis.main(["events", "replay", "--since", since])


# --- every command


def commands(group: click.Group = aegis.aegis, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", sorted(set(commands()) - {("completion",)}), ids=" ".join)
def test_the_help_of_a_command_has_examples_that_work_and_its_exit_codes(path: tuple[str, ...], capsys: Any) -> None:
    aegis.main([*path, "--help"])
    text = capsys.readouterr().out
    assert "--json" in text
    assert {"0", "1", "2", "130"} <= {line.split()[0] for line in text.partition("Exit codes:")[2].splitlines()[1:]}
    examples = re.findall(rf"^  (?:\w+=\S+ )?aegis {' '.join(path)}\b(.*)$", text.partition("Examples:")[2], re.M)
    assert len(examples) > 1
    command: click.Command = aegis.aegis
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    for example in examples:
        assert command.make_context(path[-1], shlex.split(example.partition("|")[0]))


def test_the_help_of_replay_says_for_how_long_events_are_kept(capsys: Any) -> None:
    aegis.main(["events", "replay", "--help"])
    assert f"{partitions.KEPT.days} days" in capsys.readouterr().out


def test_the_help_does_not_wait_for_heavy_packages() -> None:
    heavy = ("kubernetes", "pydantic", "sqlalchemy", "yaml")
    program = f"import sys, knative.aegis; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def as_json(capsys: Any, *arguments: str) -> Any:
    capsys.readouterr()
    aegis.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_json_of_an_administrator_has_the_code(address: str, capsys: Any) -> None:
    made = as_json(capsys, "admin", "create", address)
    assert (made["id"], made["email"], made["is_new"]) == (str(find(address).id), address, True)
    renewed = as_json(capsys, "admin", "code", address)
    assert CODE.fullmatch(made["code"])
    assert confirmed(user_at(address), renewed["code"]) == 200


def test_json_of_dead_letters_has_all_that_the_text_has(function: str, capsys: Any) -> None:
    numbers = give_up(function=function), give_up(function=function, data=b"\xff", content_type="")
    listed = as_json(capsys, "events", "dead", "list", "--function", function)
    assert listed["count"] == 2
    assert [letter["number"] for letter in listed["dead_letters"]] == [*reversed(numbers)]
    shown, broken = (as_json(capsys, "events", "dead", "show", str(number)) for number in numbers)
    assert shown["attributes"]["requestid"] == "the-request"
    assert shown["data"]["user_id"] == shown["attributes"]["subject"]
    assert broken["data_base64"] == "/w=="
    assert as_json(capsys, "events", "dead", "list", "--function", "nobody") == {"count": 0, "dead_letters": []}
    assert as_json(capsys, "events", "dead", "drop", "--all", "--function", function) == {"dropped": 2}


def test_json_of_a_rotation_has_the_keys_without_their_private_parts(file: Path, capsys: Any) -> None:
    told = as_json(capsys, "keys", "rotate", "--file", str(file))
    made = keys_in(file)[1]
    assert told["keys"][1] == {"kid": made["kid"], "iat": made["iat"]}
    assert all(key["d"] not in json.dumps(told) for key in keys_in(file))


def test_json_of_a_replay_has_the_number_of_events(own_database: Process, capsys: Any) -> None:
    sent_before(timedelta(hours=1))
    assert as_json(capsys, "events", "replay", "--since", "2h")["events"] == 1


@pytest.mark.parametrize("arguments", [["completion", "bash"], ["--help"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_error_to_speak_of(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "knative.aegis", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""


def test_a_command_goes_on_when_nobody_reads_its_progress() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        progress = Progress(closed)
        progress.say("the first line")
        progress.say("the second line")


def test_a_bug_is_told_without_a_traceback_which_is_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def callback() -> None:
        raise KeyError("revision")

    monkeypatch.setitem(aegis.aegis.commands, "broken", click.Command("broken", callback=callback))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    text = refusal("broken")
    (file,) = tmp_path.iterdir()
    assert (str(file) in text, "Traceback" in text) == (True, False)
    assert "KeyError: 'revision'" in file.read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_bash_completes_commands_and_environments() -> None:
    script = f"""
        eval "$({ROOT}/aegis completion bash)"
        COMP_WORDS=({ROOT}/aegis ro) COMP_CWORD=1; _aegis_completion {ROOT}/aegis; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=({ROOT}/aegis diff --environment st) COMP_CWORD=3 COMPREPLY=(); _aegis_completion {ROOT}/aegis
        echo "${{COMPREPLY[@]}}"; complete -p aegis
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:2] == ["rollback", "staging"]
    assert done.stdout.rstrip().endswith(" aegis")


def test_zsh_completes_commands_with_their_descriptions() -> None:
    done = run(COMP_WORDS="aegis rollb", COMP_CWORD="1", _AEGIS_COMPLETE="zsh_complete")
    assert done.stdout.splitlines()[1:] == ["rollback", "Roll back to an earlier release."]
