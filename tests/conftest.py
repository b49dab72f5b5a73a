"""One set of servers for all tests: `make up`'s own processes, in a folder of their own."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import urlencode

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, Engine, Table, text

from shared.framework import openapi
from shared.framework.registry import EVENT_FUNCTIONS, HTTP_FUNCTIONS
from shared.postgresql.pool import unpooled
from shared.postgresql.transactions import transaction
from shared.runtime.resource_names import resource_name
from tests.businesses import new_business_number

# How long one example takes says nothing on a machine that runs other tests as well.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".local" / "tests"
PASSWORD = "copper lantern drifts north"
START_SECONDS = 180.0
MAX_LOG_LINES = 100

_only_run: list[TextIO] = []
"""Holds the lock on the data folder as long as this process lives."""


def pytest_configure(config: pytest.Config) -> None:
    """Keeps other runs away from the data folder, in the process that hands out the tests."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    DATA.parent.mkdir(exist_ok=True)
    _only_run.append(lock := DATA.with_suffix(".lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pytest.exit(f"Other tests run in {ROOT}: wait until they end, or use a clone of its own.", returncode=1)
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the service too, as Ctrl-C does


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("no_service"):
        use_service()


@cache
def use_service() -> None:
    """Takes the settings of the service, which the first test that needs it starts, in whichever process."""
    environment = DATA / "environment.json"
    once_for_all_workers(environment, lambda: start_service(environment))
    os.environ.update(json.loads(environment.read_text()))


def once_for_all_workers(path: Path, make: Callable[[], object]) -> None:
    """Lets the first worker that needs a file or folder make it; others that need it wait."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make()


def start_service(environment: Path) -> None:
    from knative.local.servers import free_port

    own = {"PORT": str(free_port()), "DATA_DIR": str(DATA)}
    command = [sys.executable, "-m", "knative.local.up"]
    with (DATA / "up.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log)
    (DATA / "pid").write_text(str(process.pid))
    deadline = time.monotonic() + START_SECONDS
    while not environment.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.exit(f"the service does not start:\n{(DATA / 'up.log').read_text()}", returncode=1)
        time.sleep(0.05)


def pytest_unconfigure() -> None:
    if not _only_run:
        return
    if (DATA / "pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((DATA / "pid").read_text()), signal.SIGTERM)
        with (DATA / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the service holds it until it has ended
    shutil.rmtree(DATA, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to a failed test what the service logged meanwhile, other than that all went well."""
    report = yield
    if report.failed and (DATA / "logs").exists():
        report.sections.append(("service log", "\n".join(_trouble_since(call.start)[-MAX_LOG_LINES:])))
    return report


def _trouble_since(start: float) -> list[str]:
    since = datetime.fromtimestamp(start, UTC).isoformat(timespec="milliseconds")
    lines = []
    for file in (DATA / "logs").glob("*.log"):
        for text_ in file.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                line = json.loads(text_)
                if line["time"] >= since and (line["level"] != "INFO" or line.get("status", 0) >= 500):
                    lines.append((line["time"], f"{file.stem}: {text_}"))
    return [text_ for _, text_ in sorted(lines)]


@dataclass(frozen=True)
class User:
    """An account in the database, and how to log in to it."""

    id: uuid.UUID
    email: str
    password: str = PASSWORD


@pytest.fixture
def address() -> str:
    """An e-mail address that no other test has."""
    return f"{uuid.uuid4().hex[:12]}@example.com"


@pytest.fixture
def active_user(address: str) -> User:
    """A user with a verified address, who has never logged in."""
    return create_user(address)


@pytest.fixture
def admin(address: str) -> dict[str, Any]:
    """The tokens of an administrator, with a second factor."""
    return create_admin(f"admin-{address}")[1]


@pytest.fixture
def phone() -> str:
    """A Korean mobile number that no other test has."""
    return f"+8210{secrets.choice('2467')}{secrets.randbelow(10**7):07}"


def owner() -> Engine:
    """Connects as the owner of the tables, for what the role of the functions may not do."""
    return unpooled(os.environ.get("OWNER_DATABASE_URL") or os.environ["DATABASE_URL"])


def create_user(address: str, status: str = "active") -> User:
    from sqlalchemy import insert
    from uuid_utils.compat import uuid7

    from shared.postgresql.tables import account, credential

    user = User(uuid7(), address)
    with transaction() as connection:
        row = {"id": user.id, "email": address, "canonical_email": address, "name": "김민준", "locale": "ko"}
        connection.execute(insert(account).values(status=status, **row))
        connection.execute(insert(credential).values(account_id=user.id, password_hash=password_hash()))
    return user


@cache
def password_hash() -> str:
    """One hash of PASSWORD for all users, as a hash each would take long."""
    from shared.identity.passwords import hash_password

    return hash_password(PASSWORD)


class BufferedClient(FlaskClient):
    """Reads each answer to its end, as a server does: that is when a request is counted and logged."""

    function = ""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        # As the gateway's requests; a header of the test's own goes before.
        self.environ_base["HTTP_X_GATEWAY_KEY"] = os.environ["GATEWAY_KEY"]
        if self.function in EVENT_FUNCTIONS:  # as one of those who may deliver; a header of the test's own goes before
            from shared.events.delivery_tokens import authorization

            self.environ_base["HTTP_AUTHORIZATION"] = authorization(resource_name(self.function))["Authorization"]
        return super().open(*args, buffered=True, **kwargs)


_clients: dict[str, FlaskClient] = {}


def client(function: str) -> FlaskClient:
    """The function's own application, called without a network: what a pod serves on its port."""
    from shared.framework.server import create_app

    if function not in _clients:
        app = create_app(function)
        app.test_client_class = BufferedClient
        _clients[function] = app.test_client()
        _clients[function].function = function  # type: ignore[attr-defined]
    return _clients[function]


def post(function: str, path: str, body: Any, **headers: str) -> Any:
    return client(function).post(path, json=body, headers=headers)


def call(
    function: str,
    tokens: dict[str, Any] | None = None,
    body: Any = None,
    *,
    query: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    address: str = "127.0.0.1",
    **ids: Any,
) -> Any:
    """The answer of an operation, by its own method and path.

    Args:
        tokens: of the session that calls.
        address: that the request comes from; loopback shares no limit.
        ids: the parameters of the path.
    """
    client_ = client(function)
    operation = HTTP_FUNCTIONS[function]
    response: Any = client_.open(
        operation.path.format(**ids),
        method=operation.method,
        json=body,
        query_string=query,
        headers={**(bearer(tokens) if tokens else {}), **(headers or {}), "X-Forwarded-For": address},
    )
    if response.mimetype == "application/problem+json":
        documented = {problem.type_uri() for problem in (*openapi.ANYWHERE, *openapi.problems_of(operation))}
        assert response.json["type"] in documented, f"{function} answers what its documentation does not list"
    return response


def envelope(type_: str, **attributes: str) -> dict[str, str]:
    """The headers of an event of its own (CloudEvents 1.0 in binary mode)."""
    from uuid_utils.compat import uuid7

    event = {"specversion": "1.0", "id": str(uuid7()), "source": "/aegis/user-service", "type": type_, **attributes}
    return {f"ce-{name}": value for name, value in event.items()}


def fire(function: str) -> Any:
    """The answer of a scheduled function to the event of its schedule."""
    return post(function, "/", {}, **envelope("dev.knative.sources.ping", source=f"/tests/{function}"))


def log_in(user: User) -> dict[str, Any]:
    """A new session of the user: the pair of tokens."""
    response = call("login", body={"email": user.email, "password": user.password})
    assert response.status_code == 200, response.text
    tokens: dict[str, Any] = response.json
    return tokens


def session_of(user: User, *, amr: Sequence[str] = ("pwd",), ago: timedelta = timedelta(0)) -> dict[str, Any]:
    """The tokens of a session that started without a request, so long ago, by these methods (RFC 8176)."""
    from shared.http.clients import Client
    from shared.identity import access_tokens, sessions

    with transaction() as connection:
        tokens = sessions.log_in(connection, user.id, amr, Client("127.0.0.1", "tests"))
        assert tokens
    caller = access_tokens.verify(tokens["access_token"])
    earlier = replace(caller, authenticated_at=caller.authenticated_at - int(ago.total_seconds()))
    return {**tokens, "access_token": access_tokens.issue(earlier)}


def strong_session_of(user: User) -> dict[str, Any]:
    """The tokens of a session that has passed a second factor."""
    return session_of(user, amr=["pwd", "otp", "mfa"])


def passkey_session_of(user: User) -> dict[str, Any]:
    """The tokens of a session that has passed a passkey."""
    return session_of(user, amr=["pop", "user", "mfa"])


def id_of(tokens: dict[str, Any]) -> str:
    """The id of the session that has these tokens."""
    from shared.identity import access_tokens

    return str(access_tokens.verify(tokens["access_token"]).session_id)


def create_admin(address: str) -> tuple[User, dict[str, Any]]:
    """An administrator, and the tokens of their session with a second factor."""
    from sqlalchemy import update

    from shared.postgresql.tables import account

    user = create_user(address)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(roles=["admin"]))
    return user, strong_session_of(user)


def issue(user: User, purpose: str, lifetime: timedelta = timedelta(minutes=30)) -> str:
    """A token for this purpose, as it stands in the link of a mail."""
    from shared.identity import verifications

    with transaction() as connection:
        return verifications.create(connection, user.id, purpose, lifetime)


def first_factor_code_of(user: User) -> str:
    """A new code with which a holder of a role binds their first factor."""
    from shared.identity import first_factor

    with transaction() as connection:
        return first_factor.issue_code(connection, user.id)


def withdrawn_since(ago: timedelta, *users: User) -> None:
    """Lets users have withdrawn so long ago."""
    from sqlalchemy import func, update

    from shared.postgresql.tables import account

    withdrawn = {"status": "withdrawn", "withdrawn_at": func.now() - ago}
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id.in_([user.id for user in users])).values(withdrawn))


def add_business(user: User, **changes: Any) -> None:
    """A business that nobody has checked yet, under a number of its own; the sandbox knows it as active."""
    from sqlalchemy import insert

    from shared.postgresql.tables import business

    row = {
        "number": new_business_number(),
        "opened_on": date(2019, 3, 4),
        "representative": "김민준",
        "status": "pending",
    }
    with transaction() as connection:
        connection.execute(insert(business).values(account_id=user.id, **(row | changes)))


def row_of(user: User, table: Table) -> Any:
    """The user's row in a table that has at most one of each account."""
    from sqlalchemy import select

    with transaction() as connection:
        return connection.execute(select(table).where(table.c.account_id == user.id)).one_or_none()


def sessions_of(user: User) -> int:
    """How many sessions are stored of the user."""
    from sqlalchemy import func, select

    from shared.postgresql.tables import session

    with transaction() as connection:
        return connection.scalar(select(func.count()).where(session.c.account_id == user.id)) or 0


def events_of(user: User) -> list[str]:
    """The types of the events about a user, in order, without com.aegis.user. before and .v1 behind."""
    from sqlalchemy import select

    from shared.postgresql.tables import outbox

    with transaction() as connection:
        types = connection.scalars(
            select(outbox.c.type).where(outbox.c.subject == user.id).order_by(outbox.c.position)
        ).all()
    return [type_.removeprefix("com.aegis.user.").removesuffix(".v1") for type_ in types]


def somebody_waits_for(connection: Connection) -> bool:
    """Whether another transaction waits for a lock that this one holds."""
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    return bool(connection.scalar(text(blocked)))


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def wait_for(find: Callable[[], T], seconds: float = 60.0) -> T:
    """What `find` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def until_stopped(work: Callable[[threading.Event], Any]) -> Iterator[None]:
    """Lets a thread work for the block: until the event is set that it is given."""
    stopped = threading.Event()
    thread = threading.Thread(target=work, args=(stopped,))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def inbox(address: str) -> list[dict[str, Any]]:
    """The messages to an address, newest first, as the sandbox shows them."""
    url = f"{os.environ['PUBLIC_URL']}/inbox?{urlencode({'to': address})}"
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        messages: list[dict[str, Any]] = json.load(response)
    return messages


def counted(name: str, **labels: str) -> float:
    """What this process has counted under a name, over all series with these labels."""
    from prometheus_client import REGISTRY

    from shared.runtime import metrics

    metrics.load()
    samples = [sample for family in REGISTRY.collect() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def scrape(process: str) -> list[Metric]:
    """What a process of the service shows to Prometheus: a function, the relay or the dispatcher."""
    targets = json.loads((DATA / "targets.json").read_text())
    (target,) = (one["targets"][0] for one in targets if one["labels"]["process"] == process)
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as response:
        return list(text_string_to_metric_families(response.read().decode()))


def mailed_token(address: str, subject: str = "") -> str:
    """The token in the newest mail to an address, once there is one; of those with these words in their subject."""

    def mails() -> list[dict[str, Any]]:
        return [mail for mail in inbox(address) if subject in mail.get("subject", "")]

    text: str = wait_for(mails)[0]["text"]
    return text.partition("#token=")[2].split()[0]


@pytest.fixture
def alone() -> Iterator[None]:
    """No other test that asks for this deletes what is due in the meantime."""
    with (DATA / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def no_pause() -> Iterator[None]:
    """A test that took Redis or PostgreSQL away does not slow the next one in this process."""
    yield
    from shared.postgresql import pool, replica
    from shared.redis import cache

    cache._late.clear()
    cache._breaker.close()
    pool.primary.breaker.close()
    replica.server.breaker.close()


pytest_plugins = ["tests.browser", "tests.servers"]
