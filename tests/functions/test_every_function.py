"""What holds for every function, whatever it is for; the requests are made from the OpenAPI document."""

import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import func, select, update

from shared.framework import openapi
from shared.framework.registry import HTTP_FUNCTIONS, HttpFunction, load_all
from shared.postgresql.tables import account, audit, outbox, purged_account, session
from shared.postgresql.transactions import transaction
from shared.runtime.problems import NoSuchItem
from tests.authenticator import with_totp
from tests.conftest import User, bearer, call, client, create_admin, create_user, session_of, strong_session_of

load_all()
OPERATIONS = [operation for _, operation in sorted(HTTP_FUNCTIONS.items()) if operation.path != "/*"]
DOCUMENT = openapi.document(OPERATIONS, "https://api.example.com")


def of(operations: Iterable[HttpFunction]) -> pytest.MarkDecorator:
    """Runs a test once for each of these operations; there are some."""
    chosen = list(operations)
    assert chosen
    return pytest.mark.parametrize("operation", chosen, ids=lambda operation: operation.name)


AUTHENTICATED = [operation for operation in OPERATIONS if operation.authenticated]
CHANGES = [operation for operation in AUTHENTICATED if operation.method != "GET"]
OF_ADMINISTRATORS = [operation for operation in AUTHENTICATED if operation.role]
WITH_BODY = [operation for operation in OPERATIONS if operation.body]
WITH_QUERY = [operation for operation in OPERATIONS if operation.query]


def schema_of(operation: HttpFunction) -> dict[str, Any]:
    """The documented schema of the body."""
    documented = DOCUMENT["paths"][operation.path][operation.method.lower()]
    (*_, content) = documented["requestBody"]["content"].values()
    name = content["schema"]["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = DOCUMENT["components"]["schemas"][name]
    return schema


def texts_of(operation: HttpFunction) -> dict[str, dict[str, Any]]:
    """The schemas of the fields that are texts."""
    fields = {}
    for name, field in schema_of(operation)["properties"].items():
        for schema in field.get("anyOf", [field]):
            if schema.get("type") == "string":
                fields[name] = schema
    return fields


def body_of(operation: HttpFunction) -> dict[str, Any] | None:
    """A body of the documented examples; the password among them is that of the tests' users."""
    if not operation.body:
        return None
    body = {}
    for name, field in schema_of(operation)["properties"].items():
        (schema, *_) = field.get("anyOf", [field])
        if schema.get("format") == "date":
            body[name] = "2001-02-03"
        elif values := schema.get("examples") or schema.get("enum"):
            body[name] = values[-1]
    return body


def send(operation: HttpFunction, tokens: dict[str, Any] | None, body: Any, user_id: uuid.UUID | None = None) -> Any:
    """The answer; of the ids in the path only that of a user can be somebody's."""
    ids: dict[str, Any] = {"user_id": user_id or uuid.uuid4(), "session_id": uuid.uuid4(), "passkey_id": uuid.uuid4()}
    return call(operation.name, tokens, body, **ids)


def tokens_for(operation: HttpFunction, address: str) -> dict[str, Any] | None:
    """Tokens of somebody new who may call the operation."""
    if not operation.authenticated:
        return None
    return create_admin(f"new-{address}")[1] if operation.role else session_of(create_user(f"new-{address}"))


def stored_of(*users: User) -> dict[str, list[Any]]:
    """All rows of these users, but for what functions of events and schedules write."""
    ids = [user.id for user in users]
    stored = {}
    with transaction() as connection:
        for name, table in account.metadata.tables.items():
            owner = {"account": "id", "outbox": "subject"}.get(name, "account_id")
            if owner in table.c and table not in (audit, purged_account):
                columns = [column for column in table.c if column is not outbox.c.sent_at]
                query = select(*columns).where(table.c[owner].in_(ids)).order_by(*table.primary_key)
                stored[name] = [tuple(row) for row in connection.execute(query)]
    return stored


@of(AUTHENTICATED)
def test_without_an_access_token_it_is_a_401_that_names_the_scheme(operation: HttpFunction) -> None:
    """RFC 9110, 15.5.2; RFC 6750, 3."""
    response = send(operation, None, body_of(operation))
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:unauthenticated")
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@of(CHANGES)
def test_a_session_that_was_ended_a_moment_ago_changes_nothing(
    operation: HttpFunction, active_user: User, address: str
) -> None:
    """As when the owner sets another password just then, or Redis did not take the news of it."""
    with_totp(active_user)
    caller, tokens = create_admin(f"admin-{address}")
    if not operation.role:
        caller = create_user(f"caller-{address}")
        tokens = session_of(caller)
    assert call("get_profile", tokens).status_code == 200  # its session is in the cache as one that goes on
    with transaction() as connection:
        connection.execute(update(session).where(session.c.account_id == caller.id).values(ended_at=func.now()))
    before = stored_of(caller, active_user)
    assert before["account"]
    assert before["totp"]
    response = send(operation, tokens, body_of(operation), active_user.id)
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:unauthenticated")
    assert stored_of(caller, active_user) == before


@of(OF_ADMINISTRATORS)
def test_who_is_no_administrator_is_refused_and_changes_nobody(
    operation: HttpFunction, active_user: User, address: str
) -> None:
    caller = create_user(f"caller-{address}")
    tokens = strong_session_of(caller)
    before = stored_of(caller, active_user)
    response = send(operation, tokens, body_of(operation), active_user.id)
    assert (response.status_code, response.json["type"]) == (403, "urn:aegis:problem:forbidden")
    assert stored_of(caller, active_user) == before


@of(OF_ADMINISTRATORS)
def test_an_administrator_who_has_passed_no_second_factor_is_asked_for_it(
    operation: HttpFunction, active_user: User, address: str
) -> None:
    """RFC 9470, 3."""
    admin, _ = create_admin(f"admin-{address}")
    tokens = session_of(admin)
    before = stored_of(admin, active_user)
    response = send(operation, tokens, body_of(operation), active_user.id)
    assert (response.status_code, response.json["reason"]) == (401, "second-factor-missing")
    assert "insufficient_user_authentication" in response.headers["WWW-Authenticate"]
    assert stored_of(admin, active_user) == before


@of(operation for operation in AUTHENTICATED if NoSuchItem in operation.problems)
def test_what_is_not_there_is_a_404(operation: HttpFunction, address: str) -> None:
    """A user, session or passkey that nobody has, or the app of who has none."""
    response = send(operation, tokens_for(operation, address), body_of(operation))
    assert (response.status_code, response.json["type"]) == (404, "urn:aegis:problem:no-such-item")


@of(WITH_BODY)
def test_a_field_that_is_not_documented_is_named(operation: HttpFunction, address: str) -> None:
    response = send(operation, tokens_for(operation, address), {**(body_of(operation) or {}), "unheard_of": 1})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/unheard_of"]


@of(WITH_QUERY)
def test_a_parameter_of_the_query_that_is_not_documented_is_named(operation: HttpFunction, address: str) -> None:
    tokens = tokens_for(operation, address)
    response = call(operation.name, tokens, query={"unheard_of": 1}, user_id=uuid.uuid4())
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == ["/unheard_of"]


@of(operation for operation in WITH_BODY if schema_of(operation).get("required"))
def test_all_fields_that_are_missing_are_named(operation: HttpFunction, address: str) -> None:
    response = send(operation, tokens_for(operation, address), {})
    assert response.status_code == 422
    assert {error["pointer"] for error in response.json["errors"]} == {
        f"/{name}" for name in schema_of(operation)["required"]
    }


@of(operation for operation in WITH_BODY if texts_of(operation))
def test_a_number_or_nothing_in_place_of_a_text_is_named(operation: HttpFunction, address: str) -> None:
    tokens = tokens_for(operation, address)
    response = send(operation, tokens, {**(body_of(operation) or {}), **dict.fromkeys(texts_of(operation), 1)})
    assert response.status_code == 422
    assert {error["pointer"] for error in response.json["errors"]} == {f"/{name}" for name in texts_of(operation)}


@of(operation for operation in WITH_BODY if any("maxLength" in schema for schema in texts_of(operation).values()))
def test_a_text_beyond_its_documented_length_is_named(operation: HttpFunction, address: str) -> None:
    tokens = tokens_for(operation, address)
    for name, schema in texts_of(operation).items():
        lengths = [schema["maxLength"] + 1] if "maxLength" in schema else []
        if "minLength" in schema:
            lengths.append(schema["minLength"] - 1)
        for length in lengths:
            response = send(operation, tokens, {**(body_of(operation) or {}), name: "x" * length})
            assert response.status_code == 422, (name, length)
            assert [error["pointer"] for error in response.json["errors"]] == [f"/{name}"]


@of(WITH_BODY)
def test_what_is_no_json_object_is_refused(operation: HttpFunction, address: str) -> None:
    tokens = tokens_for(operation, address)
    path = operation.path.format(user_id=uuid.uuid4())
    for data, status in ((b"", 400), (b"{", 400), (b"[]", 422), (b"null", 422), (b"1", 422), (b'"a"', 422)):
        response = client(operation.name).open(
            path,
            method=operation.method,
            data=data,
            content_type="application/json",
            headers={**(bearer(tokens) if tokens else {}), "X-Forwarded-For": "127.0.0.1"},
        )
        assert response.status_code == status, data
        assert response.content_type == "application/problem+json"
        assert [error["pointer"] for error in response.json.get("errors", [])] == [""] * (status == 422)  # type: ignore[union-attr]
