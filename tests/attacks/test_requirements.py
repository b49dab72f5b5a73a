"""What OWASP ASVS 5.0 asks of the service as it stands on the network: seen by callers who know its documents alone."""

import math
import os
import re
import socket
from urllib.parse import urlsplit

import pytest

from tests.attacks.attacker import USERS, Caller
from tests.attacks.test_factors import add_passkey, log_in_with
from tests.authenticator import App
from tests.conftest import PASSWORD, inbox, mailed_token, wait_for

NEW_PASSWORD = "a wholly new choice of words"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")


def test_an_owner_is_told_of_each_change_in_how_the_account_is_entered(address: str, phone: str) -> None:
    """ASVS 6.3.7."""
    owner, new_address = Caller(), f"new-{address}"
    owner.register(address)
    owner.log_in(address)

    def told(subject: str, times: int = 1, to: str = address) -> None:
        wait_for(lambda: sum(subject in mail["subject"] for mail in inbox(to)) == times)

    def send(status: int, method: str, path: str, body: object = None) -> dict[str, object]:
        answer = owner.send(method, USERS + path, body)
        assert answer.status == status, (path, answer.body)
        return answer.body or {}

    app = App(str(send(201, "POST", "/me/totp")["secret"]))
    codes = send(200, "POST", "/me/totp/confirm", {"code": app.code()})["recovery_codes"]
    assert isinstance(codes, list)
    told("2단계 인증이 설정")
    challenge = owner.log_in(address).body["challenge"]
    tokens = send(200, "POST", "/login/second-factor", {"challenge": challenge, "code": codes[0]})
    owner.access_token = str(tokens["access_token"])
    told("복구 코드가 사용")
    send(201, "POST", "/me/totp/recovery-codes")
    told("복구 코드가 새로 발급")

    send(202, "POST", "/me/phone", {"phone": phone})
    found = re.search("[0-9]{6}", wait_for(lambda: inbox(phone))[0]["text"])
    assert found
    send(204, "POST", "/me/phone/verify", {"code": found[0]})
    told("전화번호가 확인")
    send(204, "DELETE", "/me/phone")
    told("전화번호가 삭제")

    passkey = add_passkey(owner)
    told("패스키가 등록")
    assert log_in_with(passkey, owner) == 200
    send(204, "PUT", "/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD})
    told("비밀번호가 변경")
    send(204, "DELETE", "/me/totp")
    told("2단계 인증이 해제")

    send(202, "POST", "/me/email", {"email": new_address, "password": NEW_PASSWORD})
    told("변경 요청을 받았습니다")
    link = {"token": mailed_token(new_address), "password": NEW_PASSWORD}
    send(204, "POST", "/email/verify", link)
    told("다른 주소로 변경")
    told("이메일 주소가 변경", to=new_address)

    passkeys = send(200, "GET", "/me/passkeys")["passkeys"]
    assert isinstance(passkeys, list)
    send(204, "DELETE", f"/me/passkeys/{passkeys[0]['id']}")
    told("패스키가 삭제", to=new_address)
    send(202, "POST", "/password/forgot", {"email": new_address})
    send(204, "POST", "/password/reset", {"token": mailed_token(new_address, "비밀번호를 설정"), "password": PASSWORD})
    told("비밀번호가 변경", to=new_address)


def test_a_mailed_link_tells_servers_and_logs_nothing(address: str) -> None:
    """ASVS 14.2.1: the path and the query go to servers, the fragment does not."""
    owner = Caller()
    owner.register(address)
    owner.log_in(address)
    assert owner.send("POST", f"{USERS}/password/forgot", {"email": address}).status == 202
    change = {"email": f"new-{address}", "password": PASSWORD}
    assert owner.send("POST", f"{USERS}/me/email", change).status == 202
    mailed_token(address, "비밀번호를 설정")
    mailed_token(change["email"])
    mails = [*inbox(address), *inbox(change["email"])]
    links = [urlsplit(link) for mail in mails for link in re.findall(r"https?://[^\s\"<>]+", mail["text"])]
    secret = [link for link in links if link.fragment]
    assert len(secret) >= 3
    assert all(re.fullmatch(r"token=[\w-]{43}", link.fragment) for link in secret)
    assert {link.query for link in links} == {""}
    assert all(re.fullmatch(r"(/[a-z-]{1,30})*/?", link.path) for link in links)


def test_recovery_codes_are_too_many_to_search_them(address: str) -> None:
    """ASVS 6.5.2: 112 bits, or the hash of them would have to be a slow one."""
    owner = Caller()
    owner.register(address)
    owner.log_in(address)
    app = App(owner.send("POST", f"{USERS}/me/totp").body["secret"])
    codes = owner.send("POST", f"{USERS}/me/totp/confirm", {"code": app.code()}).body["recovery_codes"]
    texts = [re.sub(r"\W", "", code) for code in codes]
    alphabet = set("".join(texts))
    assert len(set(codes)) == 10
    assert min(len(text) for text in texts) * math.log2(len(alphabet)) >= 112
    # No place of a code says less than another.
    assert all(len({text[place] for text in texts}) > 1 for place in range(len(texts[0])))


def test_no_method_works_that_the_document_does_not_list() -> None:
    """ASVS 4.1.4, 13.4.4."""
    document = Caller().send("GET", "/openapi.json").body
    for path, operations in document["paths"].items():
        listed = {method.upper() for method in operations}
        listed |= {"HEAD"} if "GET" in listed else set()
        target = re.sub(r"\{\w+\}", "018f0000-0000-7000-8000-000000000000", path)
        caller = Caller()
        for method in set(METHODS) - listed:
            answer = caller.send(method, target)
            assert answer.status == 405, (method, path)
            assert {*answer.headers["Allow"].split(", ")} >= listed, path


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/health/ready", "/health/live", "/.git/config", "/.git/HEAD", "/.env", "/main.py"),
        *(
            "/shared/runtime/settings.py",
            "/docs/../shared/runtime/settings.py",
            "/docs/%2e%2e/main.py",
            "/docs/..%2fmain.py",
        ),
        *("/api/", "/api/v1/", "/api/v1/users/../../../metrics", "/api/v1/users/me/..;/metrics", "//metrics"),
        *("/debug/pprof/", "/server-status"),
    ],
)
def test_nothing_is_served_beside_the_api_and_its_documents(path: str) -> None:
    """ASVS 13.4.1, 13.4.3, 13.4.5."""
    assert Caller().send("GET", path).status in (400, 404)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        (f"{USERS}/me", "application/problem+json"),
        ("/nowhere", "application/problem+json"),
        ("/openapi.json", "application/json"),
        ("/asyncapi.json", "application/json"),
        ("/.well-known/jwks.json", "application/json"),
        ("/docs/", "text/html; charset=utf-8"),
        ("/reset-password", "text/html; charset=utf-8"),
        ("/verify-email", "text/html; charset=utf-8"),
    ],
)
def test_an_answer_says_what_its_body_is_and_not_what_made_it(path: str, content_type: str) -> None:
    """ASVS 4.1.1 (JSON is UTF-8 by definition, RFC 8259, 8.1), 13.4.6."""
    answer = Caller().send("GET", path)
    assert answer.headers["Content-Type"] == content_type
    assert not re.search(r"\d|python|gunicorn|werkzeug|flask", answer.headers.get("Server", ""), re.IGNORECASE)
    assert "X-Powered-By" not in answer.headers


@pytest.mark.parametrize(
    "lengths",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Content-Length: 30"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Content-Length: +4"],
    ],
    ids=str,
)
def test_a_request_of_two_lengths_smuggles_no_other(lengths: list[str]) -> None:
    """ASVS 4.2.1; RFC 9112, 6.3."""
    url = urlsplit(os.environ["PUBLIC_URL"])
    hidden = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = ["POST /api/v1/users/login HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lengths]
    with socket.create_connection((url.hostname or "", url.port or 80), timeout=10) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n0\r\n\r\n" + hidden).encode())
        connection.settimeout(2)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except TimeoutError:
            pass
    statuses = re.findall(rb"HTTP/1.1 (\d{3})", received)
    assert statuses in ([b"400"], [b"501"])  # 501: a transfer coding that it does not know (RFC 9112, 6.1)
