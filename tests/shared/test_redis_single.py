"""One Redis: a connection for each thread, which is opened again when it is gone."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from knative.local.servers import LOOPBACK
from knative.local.supervisor import Process
from shared.redis import protocol
from shared.redis.single import SingleRedis
from shared.runtime.settings import settings
from tests.conftest import User, call, log_in, wait_for
from tests.servers import redis_client

PING = ("PING",)


@pytest.fixture
def redis(own_redis: Process) -> SingleRedis:
    return SingleRedis(settings().redis_url)


def reads() -> int:
    """How often Redis has read from a connection."""
    return int(redis_client().info("stats")["total_reads_processed"])


def test_a_profile_that_is_known_is_read_in_one_round_trip(own_redis: Process, active_user: User) -> None:
    tokens = log_in(active_user)
    for _ in range(2):
        assert call("get_profile", tokens).status_code == 200
    before = reads()
    counting = reads() - before  # what it takes to ask
    before = reads()
    assert call("get_profile", tokens).status_code == 200
    assert reads() - before - counting == 1


def test_answers_come_in_the_order_of_the_commands(redis: SingleRedis) -> None:
    values = [b"\r\n$3\r\n", "한국".encode(), b"", b"x" * 300_000]
    sets = [("SET", f"test:{number}", value) for number, value in enumerate(values)]
    gets = [("GET", f"test:{number}") for number in range(len(values) + 1)]
    assert redis.run([*sets, *gets]) == [b"OK"] * len(values) + [*values, None]


def test_threads_never_get_each_others_answers(redis: SingleRedis) -> None:
    with ThreadPoolExecutor(16) as pool:
        words = [f"word {number}" for number in range(2000)]
        answers = pool.map(lambda word: redis.run([("ECHO", word), ("ECHO", word[::-1])]), words)
    assert [*answers] == [[word.encode(), word[::-1].encode()] for word in words]


def test_a_command_that_redis_refuses_is_an_error_and_the_next_is_answered(redis: SingleRedis) -> None:
    with pytest.raises(protocol.RedisRefused):
        redis.run([("SET", "test", "text"), ("INCR", "test"), ("GET", "test")])
    assert redis.run([("GET", "test")]) == [b"text"]


def test_a_connection_that_redis_has_closed_is_opened_again_and_nobody_notices(redis: SingleRedis) -> None:
    assert redis.run([PING]) == [b"PONG"]
    redis_client().client_kill_filter(_type="normal", skipme=True)
    assert redis.run([PING]) == [b"PONG"]


def test_who_waits_in_vain_closes_the_connection_and_the_late_answer_is_nobodys(
    redis: SingleRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis.run([("SET", "test", "right")]) == [b"OK"]
    redis_client().execute_command("CLIENT", "PAUSE", int(protocol.TIMEOUT_SECONDS * 2000), "ALL")
    with pytest.raises(TimeoutError):
        redis.run([("ECHO", "wrong")])
    assert wait_for(lambda: answer_of(redis)) == [b"right"]


def answer_of(redis: SingleRedis) -> list[bytes] | None:
    try:
        return redis.run([("GET", "test")])
    except TimeoutError:
        return None


def test_a_user_a_password_and_a_database_may_stand_in_the_url(own_redis: Process) -> None:
    parts, password = urlsplit(settings().redis_url), "päss/wörd@"
    address = f"{parts.hostname}:{parts.port}"
    redis_client().acl_setuser("kim", enabled=True, passwords=[f"+{password}"], keys=["*"], commands=["+@all"])
    SingleRedis(f"redis://kim:{quote(password, safe='')}@{address}/3").run([("SET", "test", "in the third")])
    third = redis_client()
    third.select(3)
    assert third.get("test") == b"in the third"
    with pytest.raises(protocol.RedisRefused):
        SingleRedis(f"redis://kim:wrong@{address}/0").run([PING])
    with pytest.raises(protocol.RedisRefused):
        SingleRedis(f"redis://{address}/0").run([PING])


@pytest.fixture
def tls(own_redis: Process, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A port at which Redis is reached by TLS, and the certificate that is shown there, for localhost."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *request.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((LOOPBACK, 0))

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return  # the test is over
            try:
                inside = context.wrap_socket(accepted, server_side=True)
            except OSError:
                continue  # who does not trust us goes away
            parts = urlsplit(settings().redis_url)
            redis = socket.create_connection((LOOPBACK, parts.port or 0))
            for source, target in ((inside, redis), (redis, inside)):
                threading.Thread(target=pass_on, args=(source, target), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1], certificate
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while content := source.recv(4096):
            target.sendall(content)
    except OSError:
        pass
    target.close()


def test_rediss_is_tls_with_a_certificate_that_is_checked(
    tls: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate = tls
    password = urlsplit(settings().redis_url).password
    with pytest.raises(ssl.SSLCertVerificationError):
        SingleRedis(f"rediss://:{password}@localhost:{port}/0").run([PING])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(ssl.SSLCertVerificationError):
        SingleRedis(f"rediss://:{password}@{LOOPBACK}:{port}/0").run([PING])  # it is another's name
    redis = SingleRedis(f"rediss://:{password}@localhost:{port}/0")
    for _ in range(3):
        assert redis.run([PING, ("ECHO", "x" * 100_000)]) == [b"PONG", b"x" * 100_000]
