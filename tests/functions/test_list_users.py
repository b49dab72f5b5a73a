"""Searching users."""

import unicodedata
import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import ClauseElement, Executable, Select, text, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from functions.list_users import UserSearch, _search
from knative.local.supervisor import Process
from shared.framework import pages
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD, User, add_business, call, create_admin, create_user


def search(admin: dict[str, Any], **query: Any) -> Any:
    response = call("list_users", admin, query=query)
    assert response.status_code == 200, response.text
    return response


def found(admin: dict[str, Any], **query: Any) -> list[str]:
    return [user["id"] for user in search(admin, **query).json["users"]]


def change(user: User, **values: Any) -> None:
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user.id).values(**values))


def test_a_user_is_shown_without_secrets(active_user: User, admin: dict[str, Any]) -> None:
    add_business(active_user, number="1234567890", status="verified")
    (user,) = search(admin, email=active_user.email).json["users"]
    assert user.pop("created_at").endswith("+00:00")
    assert user == {
        "id": str(active_user.id),
        "email": active_user.email,
        "name": "김민준",
        "phone": None,
        "status": "active",
        "roles": [],
        "locale": "ko",
        "withdrawn_at": None,
        "business": {"number": "1234567890", "status": "verified", "reason": None},
    }


def test_the_beginning_of_an_address_finds_its_user_in_any_case(active_user: User, admin: dict[str, Any]) -> None:
    local = active_user.email.partition("@")[0]
    assert found(admin, email=local.upper()) == [str(active_user.id)]
    assert found(admin, email=active_user.email) == [str(active_user.id)]
    assert found(admin, email=local[1:]) == []


def test_a_domain_in_ascii_finds_an_address_typed_in_korean(address: str, admin: dict[str, Any]) -> None:
    local = address.partition("@")[0]
    user = create_user(f"{local}@한국.com")
    assert found(admin, email=f"{local}@xn--3e0b707e.com") == [str(user.id)]


@pytest.mark.parametrize(
    "typed",
    [
        "{}@한국",
        "{}@XN--3E0B707E.co",
        "{}@xn--3e0b",
        "{}@xn--",
        "{}@mail.한국",
        "{}@mail.xn--3e0b",
        "{}@MAIL。xn--3e0b7",
    ],
)
def test_a_part_of_a_domain_finds_its_users_in_unicode_and_in_punycode(
    address: str, admin: dict[str, Any], typed: str
) -> None:
    local = address.partition("@")[0]
    user, other = create_user(f"{local}@한국.com"), create_user(f"{local}@mail.한국.com")
    create_user(f"{local}@한글.com")
    wanted = other if "mail" in typed.lower() else user
    found_ = found(admin, email=typed.format(local.upper()))
    assert str(wanted.id) in found_
    if not typed.endswith("--"):
        assert found_ == [str(wanted.id)]


@pytest.mark.parametrize("typed", ["{}@xn--zzz", "{}@example.com.xn--", "{}@한국.com.xn--a"])
def test_a_label_in_punycode_that_nobody_has_finds_nobody(address: str, admin: dict[str, Any], typed: str) -> None:
    local = address.partition("@")[0]
    create_user(f"{local}@한국.com")
    create_user(f"{local}@example.com")
    assert found(admin, email=typed.format(local)) == []


@pytest.mark.parametrize("typed", ["ΚΩΣΤΑΣ.ΠΑΠΑΣ", "κωστας.παπας", "κωστασ.παπασ", "Κώστας.ΠΑΠΑΣ".replace("ώ", "ω")])
def test_a_greek_address_is_found_in_any_case(address: str, admin: dict[str, Any], typed: str) -> None:
    email = f"κωστας.παπας-{address}"
    assert call("register", body={"email": email, "password": PASSWORD}).status_code == 202
    (user,) = search(admin, email=f"{typed}-{address}").json["users"]
    assert user["email"] == email


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("Κώστας Παπάς", "ΚΏΣΤΑΣ ΠΑΠΆΣ"),
        ("Weiß", "WEISS"),
        ("STRAUẞ", "strauss"),
        ("김민준", unicodedata.normalize("NFD", "김민준")),
        (unicodedata.normalize("NFD", "김민준"), "김민준"),
        ("Émile", unicodedata.normalize("NFD", "émile")),
    ],
)
def test_a_name_is_found_in_any_case_and_composition(
    active_user: User, admin: dict[str, Any], name: str, typed: str
) -> None:
    change(active_user, name=f"{name} {active_user.id}")
    assert found(admin, name=f" {typed} {active_user.id}") == [str(active_user.id)]


@pytest.mark.parametrize("wildcard", ["%", "_", "\\", "%%", "\\%"])
def test_wildcards_stand_for_themselves(active_user: User, admin: dict[str, Any], wildcard: str) -> None:
    assert found(admin, email=wildcard, name=wildcard) == []
    change(active_user, name=f"{wildcard}{active_user.id}")
    assert found(admin, name=f"{wildcard}{active_user.id}") == [str(active_user.id)]


def test_the_beginning_of_a_name_finds_its_user_in_any_case(active_user: User, admin: dict[str, Any]) -> None:
    name = f"Kim {uuid.uuid4().hex}"
    change(active_user, name=name)
    assert found(admin, name=name[:-1].upper()) == [str(active_user.id)]
    assert found(admin, name=name[1:]) == []


@pytest.mark.parametrize("form", ["+82{}", "0{}", "0{:.2}-{}"], ids=["E.164", "national", "dashes"])
def test_a_phone_number_finds_its_user_in_either_form(active_user: User, admin: dict[str, Any], form: str) -> None:
    number = f"10{20_000_000 + uuid.uuid4().int % 70_000_000}"
    change(active_user, phone=f"+82{number}")
    written = f"0{number[:2]}-{number[2:6]}-{number[6:]}" if "-" in form else form.format(number)
    assert found(admin, phone=written) == [str(active_user.id)]
    assert found(admin, phone=f"+82{number[:-1]}") == []


def test_a_business_number_finds_its_user_with_and_without_dashes(active_user: User, admin: dict[str, Any]) -> None:
    number = f"20011{10000 + uuid.uuid4().int % 90000}"
    add_business(active_user, number=number)
    assert found(admin, business_number=number) == [str(active_user.id)]
    assert found(admin, business_number=f"{number[:3]}-{number[3:5]}-{number[5:]}") == [str(active_user.id)]


def test_all_conditions_hold_at_once(active_user: User, address: str, admin: dict[str, Any]) -> None:
    assert found(admin, email=address, status="active") == [str(active_user.id)]
    assert found(admin, email=address, status="suspended") == []
    assert found(admin, email=address, role="admin") == []
    assert len(found(admin, email=f"admin-{address}", role="admin", status="active")) == 1


def test_each_page_leads_to_the_next_and_keeps_the_filters(address: str, admin: dict[str, Any]) -> None:
    users = [create_user(f"{number}.{address}", "suspended") for number in range(5)]
    wanted = [str(user.id) for user in reversed(users)]
    with transaction() as connection:
        connection.execute(
            update(account).where(account.c.id.in_([user.id for user in users])).values(name=f"쪽 {address}")
        )
    create_user(f"6.{address}")
    query: dict[str, Any] = {"name": f"쪽 {address}", "status": "suspended", "limit": 2}
    seen: list[list[str]] = []
    while True:
        response = search(admin, **query)
        seen.append([user["id"] for user in response.json["users"]])
        if "Link" not in response.headers:
            break
        target, _, relation = response.headers["Link"].partition(">; ")
        assert (target[0], relation) == ("<", 'rel="next"')
        parts = urlsplit(target[1:])
        assert (parts.scheme, parts.netloc, parts.path) == ("", "", "/api/v1/users")
        query = {name: value for name, (value,) in parse_qs(parts.query, strict_parsing=True).items()}
    assert seen == [wanted[:2], wanted[2:4], wanted[4:]]


def test_a_last_page_that_is_full_has_no_link(active_user: User, admin: dict[str, Any]) -> None:
    assert "Link" not in search(admin, email=active_user.email, limit=1).headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "many"),
        ("limit", " 5"),
        ("limit", "5.0"),
        ("limit", "1_0"),
        ("limit", "+5"),
        ("limit", "05"),
        ("limit", "５"),
        ("limit", "true"),
        ("cursor", "x"),
        ("cursor", ""),
        ("cursor", "A" * 32),
        ("email", ""),
        ("email", "a\0"),
        ("email", "a" * 255),
        ("name", " "),
        ("phone", "1"),
        ("phone", "nobody"),
        ("status", "deleted"),
        ("role", "root"),
        ("business_number", "123"),
        ("business_number", "١٢٣٤٥٦٧٨٩٠"),
        ("offset", "10"),
    ],
)
def test_a_bad_parameter_is_named(admin: dict[str, Any], name: str, value: str) -> None:
    response = call("list_users", admin, query={name: value})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [f"/{name}"]


@settings(max_examples=50)
@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_=-]{30,34}", fullmatch=True)))
def test_no_garbage_is_taken_for_a_cursor(searcher: dict[str, Any], cursor: str) -> None:
    response = call("list_users", searcher, query={"cursor": cursor.encode("utf-8", "replace")})
    assert response.status_code == 422
    assert response.json["errors"][0]["pointer"] == "/cursor"


@pytest.fixture(scope="module")
def searcher() -> dict[str, Any]:
    return create_admin(f"{uuid.uuid4().hex}@example.com")[1]


class Explain(Executable, ClauseElement):
    inherit_cache = False

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement


@compiles(Explain)
def compile_explain(element: Explain, compiler: SQLCompiler, **keywords: Any) -> str:
    return "EXPLAIN " + compiler.process(element.statement, **keywords)


@pytest.fixture
def many_users(own_database: Process) -> None:
    """20,000 accounts, a few of them particular."""
    with transaction() as connection:
        connection.execute(
            text("""
            INSERT INTO account (id, email, canonical_email, name, locale, status, roles, phone)
            SELECT uuidv7(), 'user' || n || '@example.com', 'user' || n || '@example.com', 'User ' || n, 'ko',
                CASE WHEN n % 1000 = 0 THEN 'suspended' ELSE 'active' END,
                CASE WHEN n % 5000 = 0 THEN ARRAY['admin'] ELSE '{}' END, '+8210' || 10000000 + n
            FROM generate_series(1, 20000) AS n
            """)
        )
        connection.execute(
            text("""
            INSERT INTO business (account_id, number, opened_on, representative, status)
            SELECT id, right(phone, 10), '2020-01-02', name, 'verified' FROM account
            """)
        )
        for table in ("account", "business"):
            connection.execute(text(f"ANALYZE {table}"))


@pytest.mark.usefixtures("many_users")
def test_every_search_uses_its_index() -> None:
    last = uuid.UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")
    expected = {
        "account_pkey": [{}, {"cursor": pages.encode(last)}, {"status": "active"}, {"email": "user1"}],
        "account_canonical_email_prefix": [{"email": "USER12345@"}, {"email": "user12"}],
        "account_folded_name_prefix": [{"name": "USER 12345"}, {"name": "user 12"}],
        "account_phone": [{"phone": "010-1000-0042"}],
        "account_status": [{"status": "suspended"}, {"status": "suspended", "cursor": pages.encode(last)}],
        "account_with_roles": [{"role": "admin"}],
        "business_number": [{"business_number": "101-01-00042"}],
    }
    for index, queries in expected.items():
        for query in queries:
            with transaction() as connection:
                search_ = _search(connection, UserSearch.model_validate(query))
                plan = "\n".join(connection.scalars(Explain(search_)).all())
            assert "Seq Scan on account" not in plan, (query, plan)
            assert index in plan or (index == "account_pkey" and "account_status" in plan), (query, plan)
