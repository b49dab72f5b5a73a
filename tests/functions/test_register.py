"""Registering, as the caller and the owner of the address see it."""

import json
import os
import unicodedata
import urllib.error
import urllib.request
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update

from shared.postgresql.tables import account, credential, outbox
from shared.postgresql.transactions import transaction
from tests.conftest import (
    PASSWORD,
    User,
    call,
    client,
    create_user,
    events_of,
    inbox,
    log_in,
    mailed_token,
    post,
    wait_for,
)

PATH = "/api/v1/users"


def register(address: str, **fields: Any) -> Any:
    return post("register", PATH, {"email": address, "password": PASSWORD, **fields})


def accounts(address: str) -> int:
    with transaction() as connection:
        return connection.scalar(select(func.count()).where(account.c.canonical_email == address.lower())) or 0


def test_registering_sends_a_korean_mail_with_a_link(address: str) -> None:
    response = register(address)
    assert (response.status_code, response.data) == (202, b"")
    assert "Content-Type" not in response.headers
    (mail,) = wait_for(lambda: inbox(address))
    assert mail["subject"] == "이메일 주소를 확인해 주세요"
    assert f"{os.environ['PUBLIC_URL']}/verify-email#token=" in mail["text"]


def test_the_mail_is_english_for_a_user_who_asks_for_it(address: str) -> None:
    register(address, locale="en")
    (mail,) = wait_for(lambda: inbox(address))
    assert mail["subject"] == "Confirm your e-mail address"


def test_a_taken_address_gets_the_same_answer_and_its_owner_a_mail(active_user: User, address: str) -> None:
    fresh = register("x" + address)
    taken = register(active_user.email, password="a wholly new choice of words", name="Somebody")
    assert (taken.status_code, taken.data) == (fresh.status_code, fresh.data)
    assert set(taken.headers.keys()) == set(fresh.headers.keys())
    (mail,) = wait_for(lambda: inbox(active_user.email))
    assert mail["subject"] == "이미 이지스 계정이 있습니다"
    assert "#token=" not in mail["text"]
    log_in(active_user)


def test_addresses_that_differ_in_case_are_one_account_and_kept_as_typed(address: str) -> None:
    local, _, domain = address.partition("@")
    register(address)
    register(address.upper())
    assert accounts(address) == 1
    with transaction() as connection:
        kept = connection.scalar(select(account.c.email).where(account.c.canonical_email == address))
    assert kept == f"{local.upper()}@{domain}"


def stored(address: str) -> Any:
    with transaction() as connection:
        return connection.execute(select(account).where(account.c.canonical_email == address)).one()


@pytest.mark.parametrize("name", ["Kim \U0001fae8", "김 ❤️", "👩\u200d💻", "می\u200cخواهم", "O'Neill-Łukasz", "ᚠ"])
def test_a_name_may_hold_what_every_language_and_emoji_take(address: str, name: str) -> None:
    assert register(address, name=name).status_code == 202
    assert stored(address).name == name


def test_a_name_is_kept_composed_and_without_space_around_it(address: str) -> None:
    name = unicodedata.normalize("NFD", "김민준")
    assert register(address, name=f"\u3000 {name * 30}\n").status_code == 202
    assert stored(address).name == "김민준" * 30


def test_a_greek_address_in_capitals_is_the_same_account(address: str) -> None:
    email = f"κωστας.παπας-{address}"
    register(email)
    user = User(stored(email.replace("ς", "σ")).id, email)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(status="active"))
    capitals = f"ΚΩΣΤΑΣ.ΠΑΠΑΣ-{address}"
    assert call("login", body={"email": capitals, "password": PASSWORD}).status_code == 200
    assert register(capitals, password="a wholly new choice of words").status_code == 202
    assert events_of(user)[-1] == "registration_repeated"


@pytest.mark.parametrize(
    ("typed", "mailed", "kept"),
    [
        ("quac\N{KELVIN SIGN}-{}@example.com", "quacK-{}@example.com", "quacK-{}@example.com"),
        ("{}@example\N{IDEOGRAPHIC FULL STOP}com", "{}@example.com", "{}@example.com"),
        ("{}@한국.com", "{}@xn--3e0b707e.com", "{}@한국.com"),
        ("{}@XN--3E0B707E.com", "{}@xn--3e0b707e.com", "{}@한국.com"),
        (" {}@example.com ", "{}@example.com", "{}@example.com"),
    ],
)
def test_mail_goes_to_the_very_address_that_is_kept(address: str, typed: str, mailed: str, kept: str) -> None:
    local = address.partition("@")[0]
    assert register(typed.format(local)).status_code == 202
    assert wait_for(lambda: inbox(mailed.format(local)))
    assert stored(kept.format(local).lower()).email == kept.format(local)


@pytest.mark.parametrize(
    "disguised", ["\N{LATIN SMALL LETTER LONG S}am", "ｋｉｍ", "\N{LATIN SMALL LIGATURE FI}n", "kim\u3164"]
)
def test_letters_that_stand_for_others_are_no_part_of_an_address(address: str, disguised: str) -> None:
    """Or whoever has the mailbox of one spelling would keep out the owner of the other."""
    response = register(disguised + address)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/email"]


def test_domains_that_differ_in_a_sharp_s_are_two(address: str) -> None:
    local = address.partition("@")[0]
    register(f"{local}@faß.example.com")
    register(f"{local}@fass.example.com")
    assert accounts(f"{local}@faß.example.com") == accounts(f"{local}@fass.example.com") == 1


@pytest.mark.parametrize(("tag", "language"), [("en-US", "en"), ("EN", "en"), ("ko_KR", "ko"), ("ko-Kore-KR", "ko")])
def test_of_a_locale_the_language_is_taken(address: str, tag: str, language: str) -> None:
    assert register(address, locale=tag).status_code == 202
    assert stored(address).locale == language


def test_registering_again_before_verification_counts_and_replaces_the_link(address: str) -> None:
    register(address)
    first = mailed_token(address)
    register(address, password="a second choice of words")
    wait_for(lambda: len(inbox(address)) == 2)
    second = mailed_token(address)
    verify = "/api/v1/users/email/verify"
    assert post("verify_email", verify, {"token": first, "password": PASSWORD}).status_code == 400
    assert post("verify_email", verify, {"token": second, "password": "a second choice of words"}).status_code == 204
    with transaction() as connection:
        user_id = connection.scalar(select(account.c.id).where(account.c.canonical_email == address))
    log_in(User(user_id or uuid.UUID(int=0), address, "a second choice of words"))


def test_fifty_at_once_make_one_account(address: str) -> None:
    body = json.dumps({"email": address, "password": PASSWORD}).encode()
    request = urllib.request.Request(
        os.environ["PUBLIC_URL"] + PATH, body, {"Content-Type": "application/json"}, method="POST"
    )

    def send(_number: int) -> int:
        try:
            status: int = urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code
        return status

    with ThreadPoolExecutor(50) as pool:
        statuses = Counter(pool.map(send, range(50)))
    assert statuses == {202: 20, 429: 30}  # a mailbox is written to no more often in an hour
    assert accounts(address) == 1


def test_nobody_floods_a_mailbox(address: str) -> None:
    statuses = [register(address).status_code for _ in range(21)]
    assert statuses == [202] * 20 + [429]


def test_a_withdrawn_user_is_told_of_the_account_that_logging_in_restores(address: str) -> None:
    create_user(address, "withdrawn")
    register(address)
    (mail,) = wait_for(lambda: inbox(address))
    assert mail["subject"] == "이미 이지스 계정이 있습니다"


def test_an_earlier_link_never_activates_a_later_password(address: str) -> None:
    """Not even before the mail with the newer link: else a stranger could set the password of a link in the post."""
    register(address)
    link = mailed_token(address)
    with transaction() as connection:
        newer = update(credential).where(account.c.id == credential.c.account_id, account.c.email == address)
        connection.execute(newer.values(password_hash="the stranger's", changed_at=func.now()))
    assert post("verify_email", "/api/v1/users/email/verify", {"token": link, "password": PASSWORD}).status_code == 400


@pytest.mark.parametrize(
    "password",
    [
        "brief",
        "fourteen chars",
        "aaaaaaaaaaaaaaaaaa",
        "passwordpassword",
        "123456789012345",
        "qwertyuiopasdfgh",
        "0123456789" * 20,
        "password" * 32,
    ],
)
def test_a_weak_password_is_refused(address: str, password: str) -> None:
    response = register(address, password=password)
    assert response.status_code == 422
    assert response.content_type == "application/problem+json"
    assert [error["pointer"] for error in response.json["errors"]] == ["/password"]
    assert password not in response.text
    assert accounts(address) == 0


def test_a_password_made_of_the_address_is_refused(address: str) -> None:
    assert register(address, password=address).status_code == 422


def test_a_password_may_hold_any_unicode(address: str) -> None:
    assert register(address, password="비밀번호는 길어야 안전하다 🔐").status_code == 202


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"email": "not an address"}, "/email"),
        ({"email": 7}, "/email"),
        ({"email": None}, "/email"),
        ({"email": "a@b\x00.com"}, "/email"),
        ({"name": "\x00"}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": "   "}, "/name"),
        ({"name": "\u202e\u200b"}, "/name"),
        ({"name": "\u200d"}, "/name"),
        ({"name": "\N{HANGUL FILLER}"}, "/name"),
        ({"name": "Kim\N{HANGUL FILLER}"}, "/name"),
        ({"name": "\N{HALFWIDTH HANGUL FILLER}"}, "/name"),
        ({"name": "\N{BRAILLE PATTERN BLANK}"}, "/name"),
        ({"name": "a\N{LINE SEPARATOR}b"}, "/name"),
        ({"name": "a\N{PARAGRAPH SEPARATOR}b"}, "/name"),
        ({"name": "Kim\N{SOFT HYPHEN}"}, "/name"),
        ({"name": "Kim \U000fffff"}, "/name"),
        ({"name": "\N{VARIATION SELECTOR-16}"}, "/name"),
        ({"name": "n" * 101}, "/name"),
        ({"locale": "fr"}, "/locale"),
        ({"locale": "english"}, "/locale"),
        ({"locale": "en-"}, "/locale"),
        ({"password": ["a"]}, "/password"),
        ({"password": "p" * 257}, "/password"),
        ({"admin": True}, "/admin"),
        ({"a/b~c": 1}, "/a~1b~0c"),
    ],
)
def test_an_invalid_field_is_named_and_changes_nothing(address: str, change: dict[str, Any], pointer: str) -> None:
    response = register(address, **change)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [pointer]
    assert accounts(address) == 0


def test_all_invalid_fields_are_named_at_once() -> None:
    response = post("register", PATH, {"locale": "fr"})
    assert {error["pointer"] for error in response.json["errors"]} == {"/email", "/password", "/locale"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff\xfe", b'{"email": "\\ud800"}', b"[" * 30_000, b'{"a":' * 10_000, b"NaN"],
    ids=lambda body: repr(body[:8]),
)
def test_what_is_not_a_json_document_is_a_400_or_422(body: bytes) -> None:
    response = client("register").post(PATH, data=body, content_type="application/json")
    assert response.status_code in (400, 422)
    assert response.content_type == "application/problem+json"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"])
def test_another_content_type_is_a_415(content_type: str) -> None:
    assert client("register").post(PATH, data=b"{}", content_type=content_type).status_code == 415


def test_the_event_names_the_user_and_holds_no_personal_data(address: str) -> None:
    register(address, name="Kim Minjun", locale="en")
    with transaction() as connection:
        user_id = connection.scalar(select(account.c.id).where(account.c.canonical_email == address))
        (event,) = connection.execute(select(outbox).where(outbox.c.subject == user_id)).all()
    assert event.type == "com.aegis.user.registered.v1"
    assert event.data == {"user_id": str(user_id), "locale": "en"}
