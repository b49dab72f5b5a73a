"""`make up` as a newcomer meets it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from knative.local import servers
from knative.local.servers import MAX_CONNECTIONS, free_port
from knative.local.supervisor import Process
from knative.local.up import containers, lock, settings
from shared.runtime.settings import load
from tests.conftest import PASSWORD, ROOT, wait_for
from tests.servers import Own

SERVERS = ("DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS")


@dataclass
class Up:
    """A running `make up` of a test's own."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str]

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def request(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json", **headers}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            content = response.read()
            return response.status, json.loads(content) if content else None

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def start(data: Path, port: int, checkout: Path = ROOT, /, **environment: str) -> Up:
    clean = {name: value for name, value in os.environ.items() if name not in SERVERS}
    process = subprocess.Popen(
        [sys.executable, "-m", "knative.local.up"],
        cwd=checkout,
        env=clean | {"PORT": str(port), "DATA_DIR": str(data)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    up = Up(process, port, [])

    def read() -> None:
        up.lines.extend(process.stdout or [])

    threading.Thread(target=read).start()
    return up


@contextmanager
def running(data: Path, checkout: Path = ROOT, /, **environment: str) -> Iterator[Up]:
    up = start(data, free_port(), checkout, **environment)
    try:
        wait_for(lambda: "Ctrl-C stops" in up.output or up.process.poll() is not None, seconds=120)
        assert "Ctrl-C stops" in up.output, up.output
        yield up
    finally:
        if up.process.poll() is None:
            up.stop()


def processes_of(data: Path) -> list[psutil.Process]:
    """What still runs for a data folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DATA_DIR") == str(data) or any(str(data) in part for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.slow
def test_a_second_start_is_quick_to_say_so_and_still_has_the_users(tmp_path: Path) -> None:
    user = "kim@example.com"
    with running(tmp_path) as up:
        command = next(line.strip() for line in up.output.splitlines() if line.strip().startswith("curl"))
        answer = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
        assert "HTTP/1.1 202" in answer.stdout
        mails = wait_for(lambda: up.request("/inbox", Accept="application/json")[1])
        link, _, rest = mails[0]["text"].partition("#token=")
        assert link.endswith(f"\nhttp://localhost:{up.port}/verify-email")  # a name, as passkeys need one
        token = rest.strip()
        assert up.request("/api/v1/users/email/verify", {"token": token, "password": PASSWORD})[0] == 204
    with running(tmp_path) as up:
        status, tokens = up.request("/api/v1/users/login", {"email": user, "password": PASSWORD})
        assert status == 200
        status, profile = up.request("/api/v1/users/me", Authorization=f"Bearer {tokens['access_token']}")
        assert (status, profile["name"]) == (200, "Kim")
        assert len(up.request("/inbox", Accept="application/json")[1]) == 1


@pytest.mark.slow
def test_ctrl_c_stops_all_of_it(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        assert processes_of(tmp_path)
        assert up.stop() == 0
    assert processes_of(tmp_path) == []


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        up = start(tmp_path, port)
        assert up.process.wait(30) == 1
    wait_for(lambda: up.output)
    assert f"Port {port} is taken by another program." in up.output
    assert f"make up PORT={port + 1}" in up.output
    assert "Traceback" not in up.output


@pytest.mark.parametrize("port", ["eighty", "0", "70000"])
def test_a_port_that_is_none_is_one_clear_line(tmp_path: Path, port: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "knative.local.up"],
        cwd=ROOT,
        env=os.environ | {"PORT": port, "DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_second_one_on_the_same_folder_is_told_where_the_first_runs(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        second = start(tmp_path, free_port())
        assert second.process.wait(30) == 1
        wait_for(lambda: second.output)
        assert f"process {up.process.pid}, port {up.port}" in second.output
        assert "Traceback" not in second.output


@pytest.mark.slow
def test_what_a_killed_run_left_behind_is_stopped_and_a_clean_start_follows(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        up.process.kill()
        up.process.wait()
        assert processes_of(tmp_path)
    with running(tmp_path) as up:
        assert "left behind by an earlier run" in up.output
        assert "Traceback" not in up.output
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_whatever_is_killed_is_started_again_and_no_registration_is_lost(tmp_path: Path) -> None:
    names = ["login", "router", "redis", "postgresql", "kafka", "relay", "dispatcher", "send_email"]
    with running(tmp_path) as up:
        for name in names:
            registration = {"email": f"{name}@example.com", "password": PASSWORD}
            assert try_until(up, "/api/v1/users", registration) == 202
            record = json.loads((tmp_path / "processes.json").read_text())
            os.killpg(next(pid for process, pid, *_ in record if process == name), signal.SIGKILL)
            wait_for_line(up, f"{name} has ended")
            assert try_until(up, "/api/v1/users/login", registration) == 401

        def addressed() -> set[str]:
            return {mail["to"] for mail in up.request("/inbox", Accept="application/json")[1]}

        wait_for(lambda: addressed() == {f"{name}@example.com" for name in names}, seconds=60)


def wait_for_line(up: Up, text: str) -> None:
    wait_for(lambda: text in up.output)


def try_until(up: Up, path: str, body: Any) -> int:
    """The first status that is not a 503 or a broken connection: what a patient client gets."""

    def attempt() -> int:
        try:
            return up.request(path, body)[0]
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return error.code
            time.sleep(float(error.headers["Retry-After"]))  # or the limit of log-ins would be reached
            return 0
        except OSError:
            return 0

    return wait_for(attempt)


def test_it_is_development_whatever_the_shell_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators set ENVIRONMENT in their shells, and production refuses http://."""
    monkeypatch.setenv("ENVIRONMENT", "production")
    assert load(settings(tmp_path, 8080)).environment == "development"


@pytest.mark.slow
def test_each_function_is_a_process_with_a_name_and_a_log_of_its_own(tmp_path: Path) -> None:
    with running(tmp_path):
        record = {name: pid for name, pid, *_ in json.loads((tmp_path / "processes.json").read_text())}
        for name in containers():
            process = psutil.Process(record[name])
            assert process.name() == name[:15] or sys.platform != "linux"
            assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
            assert "Booting worker" in (tmp_path / "logs" / f"{name}.log").read_text()


@pytest.mark.slow
def test_a_terminal_that_is_gone_does_not_keep_it_from_stopping(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "knative.local.up"],
        cwd=ROOT,
        env=os.environ | {"PORT": str(free_port()), "DATA_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    with process.stdout as terminal:
        while b"Ctrl-C stops" not in terminal.readline():
            assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert processes_of(tmp_path) == []


def test_postgresql_has_a_connection_for_every_thread_of_two_services_and_their_tests() -> None:
    """Of two, as a test starts another on the servers of the first."""
    functions = sum(load(variables).threads for variables in containers().values())
    default = load({}).threads
    relay = default + 1  # one more to be notified
    workers = 16 * default
    reserved = 3  # superuser_reserved_connections
    assert 2 * (functions + relay) + workers + reserved <= MAX_CONNECTIONS


@pytest.mark.slow
def test_two_run_side_by_side(tmp_path: Path) -> None:
    with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
        one.request("/api/v1/users", {"email": "kim@example.com", "password": PASSWORD})
        wait_for(lambda: one.request("/inbox", Accept="application/json")[1])
        assert two.request("/inbox", Accept="application/json")[1] == []


@pytest.mark.slow
def test_servers_that_the_environment_names_are_used_and_an_address_to_listen_on(
    own_database: Process, own_redis: Process, own: Own, tmp_path: Path
) -> None:
    """Servers of its own: two services on one database and one broker share the events, and with them the mails."""
    own("KAFKA_BOOTSTRAP_SERVERS", *servers.kafka())
    folder = tmp_path / "service"
    with running(folder, LISTEN_ADDRESS="0.0.0.0", **{name: os.environ[name] for name in SERVERS}) as up:  # noqa: S104
        assert "using DATABASE_URL from the environment" in up.output
        assert not (folder / "postgresql").exists()
        assert up.request("/inbox", Accept="application/json") == (200, [])
        if sys.platform == "linux":  # where every 127.x.x.x is this machine
            socket.create_connection(("127.0.0.2", up.port), timeout=5).close()


def test_a_server_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    port = free_port()
    up = start(tmp_path, free_port(), DATABASE_URL=f"postgresql://aegis:secret-password@127.0.0.1:{port}/aegis")
    assert up.process.wait(30) == 1
    wait_for(lambda: "Cannot reach" in up.output)
    assert f"Cannot reach 127.0.0.1:{port} of DATABASE_URL" in up.output
    assert "secret-password" not in up.output
    assert "Traceback" not in up.output


def test_git_ignores_a_data_folder_wherever_it_is(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("new", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        lock(tmp_path / name, 8080).close()
        (tmp_path / name / "secrets.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    lock(tmp_path / "mine", 8080).close()
    command = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "secrets.json" not in shown
    assert "mine/thesis.txt" in shown
