"""What processes show to Prometheus."""

import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import Metric

from knative.local.supervisor import Process
from shared.events.types import PhoneCodeRequested
from shared.identity import passwords
from shared.postgresql import pool as connection_pool
from shared.postgresql import transactions
from shared.postgresql.transactions import transaction
from shared.providers import mail_provider
from shared.runtime.problems import ServiceUnavailable
from tests.authenticator import second_factor_challenge, with_totp
from tests.conftest import (
    PASSWORD,
    ROOT,
    User,
    call,
    client,
    counted,
    envelope,
    log_in,
    post,
    scrape,
    wait_for,
)
from tests.providers import Answer, serving
from tests.servers import forget_settings, kill

OF_ALL_FUNCTIONS = {"service", "function"}
FROM_THE_LIBRARY = ("process_", "python_")
OURS_OF_PROCESS = "process_start_to_ready_seconds"


def documented() -> dict[str, tuple[str, set[str]]]:
    """Of each metric in docs/metrics.md, its type and its labels."""
    rows = re.findall(r"^\| ([a-z_]+) \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows if name != "name"}


def is_ours(family: Metric) -> bool:
    return family.name == OURS_OF_PROCESS or not family.name.startswith(FROM_THE_LIBRARY)


def test_the_document_names_what_processes_show_and_nothing_else(active_user: User) -> None:
    """Of a function, the relay and the dispatcher of `make up`."""
    log_in(active_user)
    shown: dict[str, tuple[str, set[str]]] = {}
    for process in ("login", "relay", "dispatcher"):
        for family in filter(is_ours, scrape(process)):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le", "service"}
            shown[name] = (family.type, labels | shown.get(name, ("", set()))[1])
    known = documented()
    assert shown.keys() == known.keys()
    assert {name: kind for name, (kind, _) in shown.items()} == {name: kind for name, (kind, _) in known.items()}
    for name, (_, labels) in shown.items():
        assert labels - {"function"} <= known[name][1], name


def test_every_series_says_that_it_is_of_the_user_service(active_user: User) -> None:
    log_in(active_user)
    for process in ("login", "relay", "dispatcher"):
        for family in filter(is_ours, scrape(process)):
            assert {sample.labels["service"] for sample in family.samples} <= {"user-service"}
    functions = {sample.labels["function"] for family in filter(is_ours, scrape("login")) for sample in family.samples}
    assert functions == {"login"}


def test_what_callers_invent_makes_no_series(active_user: User) -> None:
    def invent() -> None:
        for function in ("fallback", "login", "get_profile", "send_email"):
            for method in ("GET", "POST", "FOO", "PROPFIND", uuid.uuid4().hex.upper()):
                for path in ("/", f"/{uuid.uuid4()}", f"/api/v1/users/{uuid.uuid4()}?{uuid.uuid4()}", "/%00", "/a%0ab"):
                    client(function).open(path, method=method, data=uuid.uuid4().bytes)
        post("login", "/api/v1/users/login", {"email": f"{uuid.uuid4()}@example.com", "password": PASSWORD})
        post("send_email", "/", {}, **envelope(f"com.example.{uuid.uuid4()}"))
        post("keep_dead_letter", "/", {}, **envelope(f"com.example.{uuid.uuid4()}"))
        client("get_profile").get("/api/v1/users/me", headers={"Authorization": f"Bearer {uuid.uuid4()}"})

    def series() -> set[str]:
        lines = client("login").get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    invent()
    before = series()
    invent()
    assert series() == before
    methods = {re.findall('method="([^"]*)"', line)[0] for line in before if line.startswith("http_requests_total")}
    assert methods <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER"}


def test_log_ins_are_counted_by_what_came_of_them(active_user: User) -> None:
    def logins(work: Callable[[], object]) -> set[str]:
        before = {outcome: counted("logins_total", outcome=outcome) for outcome in outcomes}
        work()
        return {outcome for outcome in outcomes if counted("logins_total", outcome=outcome) == before[outcome] + 1}

    outcomes = ("success", "wrong_credentials", "second_factor_asked", "wrong_second_factor", "refused")
    right = {"email": active_user.email, "password": active_user.password}
    wrong = right | {"password": "not the password of anybody"}
    assert logins(lambda: call("login", body=right)) == {"success"}
    assert logins(lambda: call("login", body=wrong)) == {"wrong_credentials"}
    assert logins(lambda: call("login", body={"email": "x"})) == {"refused"}
    assert logins(lambda: call("get_profile")) == set()
    with_totp(active_user)
    assert logins(lambda: second_factor_challenge(active_user)) == {"second_factor_asked"}
    guess = {"challenge": second_factor_challenge(active_user), "code": "000000"}
    assert logins(lambda: call("login_with_second_factor", body=guess)) == {"wrong_second_factor"}


def test_a_log_in_that_is_answered_again_is_counted_once(active_user: User) -> None:
    right = {"email": active_user.email, "password": active_user.password}
    before = counted("logins_total", outcome="success")
    headers = {"Idempotency-Key": f'"{uuid.uuid4()}"'}
    answers = [call("login", body=right, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert counted("logins_total", outcome="success") == before + 1


def test_reads_of_the_cache_hit_miss_or_find_nobody(active_user: User, own_redis: Process) -> None:
    def reads(outcome: str) -> tuple[float, ...]:
        session, profile = (
            counted("cache_reads_total", cache=name, outcome=outcome) for name in ("session", "profile")
        )
        return session, profile

    tokens = log_in(active_user)
    miss, hit, unavailable, errors = reads("miss"), reads("hit"), reads("unavailable"), counted("redis_errors_total")
    call("get_profile", tokens)
    assert reads("miss") == (miss[0] + 1, miss[1] + 1)
    call("get_profile", tokens)
    assert reads("hit") == (hit[0] + 1, hit[1] + 1)
    kill(own_redis)
    assert call("get_profile", tokens).status_code == 200
    assert reads("unavailable") == (unavailable[0] + 1, unavailable[1] + 1)
    assert counted("redis_errors_total") > errors


def test_the_pool_shows_what_it_has_and_whom_it_refused(own_database: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADS", "1")
    forget_settings()
    monkeypatch.setattr(connection_pool, "TIMEOUT_SECONDS", 0.2)
    waits, timeouts = counted("database_pool_wait_seconds_count"), counted("database_pool_timeouts_total")
    in_use = counted("database_pool_connections_in_use")
    with transaction():
        assert counted("database_pool_connections_in_use") == in_use + 1
        assert counted("database_pool_connections_max") == 1
        with ThreadPoolExecutor(1) as executor, pytest.raises(ServiceUnavailable):
            executor.submit(transactions.check).result()
    assert counted("database_pool_connections_in_use") == in_use
    assert counted("database_pool_wait_seconds_count") == waits + 1
    assert counted("database_pool_timeouts_total") == timeouts + 1
    open_ = counted("database_pool_connections_open")
    connection_pool.engine().dispose()
    assert counted("database_pool_connections_open") == open_ - 1


def test_passwords_that_wait_and_that_are_shed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_slots", slots := threading.BoundedSemaphore(1))
    shed = counted("password_hashes_shed_total")
    with ThreadPoolExecutor(1) as pool:
        with slots:
            hashing = pool.submit(passwords.hash_password, PASSWORD)
            wait_for(lambda: counted("password_hashes_waiting") == 1)
        hashing.result()
    assert counted("password_hashes_waiting") == 0
    monkeypatch.setattr(passwords, "_WAIT_SECONDS", 0.01)
    with slots, pytest.raises(ServiceUnavailable):
        passwords.hash_password(PASSWORD)
    assert counted("password_hashes_shed_total") == shed + 1


def test_events_are_counted_by_type_and_by_what_came_of_them() -> None:
    def events(outcome: str, type_: str = PhoneCodeRequested.type) -> float:
        return counted("event_outcomes_total", type=type_, outcome=outcome)

    headers, data = envelope(PhoneCodeRequested.type, time="2025-01-02T03:04:05Z"), {"user_id": str(uuid.uuid4())}
    done, repeated, refused, unknown = events("done"), events("repeated"), events("refused"), events("refused", "other")
    for _ in range(2):
        assert post("send_sms", "/", data, **headers).status_code == 204
    assert (events("done"), events("repeated")) == (done + 1, repeated + 1)
    post("send_sms", "/", {}, **envelope(PhoneCodeRequested.type))
    post("send_sms", "/", {}, **envelope("com.example.unknown"))
    assert (events("refused"), events("refused", "other")) == (refused + 1, unknown + 1)


def test_requests_to_providers_are_counted_by_what_came_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(outcome: str) -> float:
        return counted("provider_requests_total", provider="mail", outcome=outcome)

    taken, failed, broken = asked("2xx"), asked("5xx"), asked("broken_off")
    timed = counted("provider_request_duration_seconds_count", provider="mail")
    with serving("EMAIL_SERVICE_URL", lambda _: Answer(202), monkeypatch) as provider:
        provider.answers = [Answer(202), Answer(500), Answer(drops=True)]
        mail_provider.send_mail("any@example.com", "subject", "text", "html")
        for _ in range(2):
            with pytest.raises(ServiceUnavailable):
                mail_provider.send_mail("any@example.com", "subject", "text", "html")
    assert (asked("2xx"), asked("5xx"), asked("broken_off")) == (taken + 1, failed + 1, broken + 1)
    assert counted("provider_request_duration_seconds_count", provider="mail") == timed + 3


def test_a_process_says_what_runs_and_how_long_it_took_to_be_ready() -> None:
    samples = {sample.name: sample for family in scrape("get_profile") for sample in family.samples}
    assert 0 < samples["process_start_to_ready_seconds"].value < 60
    assert samples["aegis_build_info"].labels["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_first_answer_does_not_wait_for_prometheus() -> None:
    """Importing it takes a good part of a cold start."""
    script = """
import sys
from shared.framework.server import create_app
client = create_app("get_profile").test_client()
client.get("/health/ready")
answer = client.get("/api/v1/users/me")
assert "prometheus_client" not in sys.modules
answer.close()
assert "prometheus_client" in sys.modules
shown = client.get("/metrics").text
assert 'http_requests_total{endpoint="/api/v1/users/me",function="get_profile",method="GET"' in shown
assert 'database_pool_wait_seconds_count{function="get_profile",service="user-service"} 1.0' in shown, shown
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
