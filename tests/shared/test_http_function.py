"""What `http_function` makes of a handler: what it takes, whom it lets in, what goes with each answer."""

import gzip
import json
import uuid
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.framework.registry import HTTP_FUNCTIONS
from shared.http.clients import Client
from shared.http.request import MAX_BODY_BYTES, Reply, etag, json_bytes, require_match
from shared.identity.access_tokens import Caller
from shared.runtime.problems import NoSuchItem
from shared.text.fields import QueryParameters, RequestBody
from tests.conftest import PASSWORD, User, bearer, call, client, create_admin, log_in, session_of
from tests.servers import Serve

ME = "/api/v1/users/me"
LOGIN = "/api/v1/users/login"
ONE, TWO = uuid.UUID("01a210a0-ffe1-70e4-88ba-70534e1ee23e"), uuid.UUID("01a210a0-ffe1-70e4-88ba-70534e1ee23f")


class Answer(TypedDict):
    text: str


class Change(RequestBody):
    text: str


class Page(QueryParameters):
    size: int = 10


@pytest.fixture
def items(serve: Serve) -> FlaskClient:
    @http_function("GET", "/users/{user_id}/items/{item_id}")
    def get_item(user_id: UUID, item_id: UUID) -> Answer:
        if item_id != TWO:
            raise NoSuchItem
        return Answer(text=f"{user_id.int} {item_id.int}")

    return serve(get_item)


def test_parameters_of_the_path_are_uuids(items: FlaskClient) -> None:
    answer = items.get(f"/users/{ONE}/items/{TWO}")
    assert (answer.status_code, answer.json) == (200, {"text": f"{ONE.int} {TWO.int}"})


def test_a_uuid_in_upper_case_is_the_same_uuid(items: FlaskClient) -> None:
    """RFC 9562, 4: read in any case."""
    assert items.get(f"/users/{ONE}/items/{str(TWO).upper()}").json == {"text": f"{ONE.int} {TWO.int}"}


@pytest.mark.parametrize(
    "path",
    [
        *(f"/users/{ONE}/items/", f"/users/{ONE}", f"/users/{ONE}/items/{TWO}/", f"/users/{ONE}/items/{TWO}/more"),
        *(f"/users/1/items/{TWO}", f"/users/{ONE}/items/{TWO.hex}"),
        *(f"/users/{ONE}/items/{TWO}%00", f"/users/{ONE}/items/{{{TWO}}}", f"/x/users/{ONE}/items/{TWO}"),
        *(f"/users/{ONE}/items/{ONE}", f"/users/{ONE}%2fitems/{TWO}x"),
    ],
)
def test_what_is_at_no_such_path_is_a_404(items: FlaskClient, path: str) -> None:
    answer = items.get(path)
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")


@pytest.mark.parametrize("path", ["/unrouted/a%0ab", "/robots.txt", "/favicon.ico"])
def test_what_the_framework_takes_for_no_path_is_a_problem_too(path: str) -> None:
    answer = client("fallback").get(path)
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")
    assert answer.headers["Cache-Control"] == "no-store"


def test_head_is_get_without_a_body_and_other_methods_are_a_405(items: FlaskClient) -> None:
    path = f"/users/{ONE}/items/{TWO}"
    head, get = items.head(path), items.get(path)
    assert (head.status_code, head.data, head.headers["ETag"]) == (200, b"", get.headers["ETag"])
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = items.open(path, method=method)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_dot_in_a_path_is_only_a_dot(serve: Serve) -> None:
    @http_function("GET", "/.well-known/answer.json")
    def get_well_known() -> Answer:
        return Answer(text="")

    served = serve(get_well_known)
    assert served.get("/.well-known/answer.json").status_code == 200
    assert served.get("/xwell-known/answer.json").status_code == 404


@pytest.mark.parametrize(
    ("method", "media_type", "status"),
    [
        ("PATCH", "application/merge-patch+json", 200),
        ("PATCH", "application/json", 200),
        ("PATCH", "application/json-patch+json", 415),
        ("PATCH", "", 415),
        ("PUT", "application/json; charset=utf-8", 200),
        ("PUT", "application/merge-patch+json", 415),
    ],
)
def test_a_body_is_json_and_of_a_patch_a_merge_patch(serve: Serve, method: str, media_type: str, status: int) -> None:
    @http_function(method, "/item")
    def change_item(body: Change) -> Answer:
        return Answer(text=body.text)

    answer = serve(change_item).open("/item", method=method, data=b'{"text": "new"}', content_type=media_type)
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("query", "status", "pointer"),
    [
        *(("", 200, ""), ("size=20", 200, ""), ("size=many", 422, "/size")),
        *(("sise=2", 422, "/sise"), ("size=1&size=2", 422, "/size"), ("size=", 422, "/size")),
    ],
)
def test_a_query_is_checked_as_a_body_is(serve: Serve, query: str, status: int, pointer: str) -> None:
    @http_function("GET", "/items")
    def list_items(query: Page) -> Answer:
        return Answer(text=str(query.size))

    answer: Any = serve(list_items).get(f"/items?{query}")
    assert answer.status_code == status
    assert [error["pointer"] for error in answer.json.get("errors", [])] == ([pointer] if pointer else [])


def test_a_handler_gets_its_client_and_if_match(serve: Serve) -> None:
    state = Answer(text="old")

    @http_function("PATCH", "/item")
    def patch_item(body: Change, client: Client, if_match: str | None) -> Answer:
        require_match(if_match, etag(json_bytes(state)))
        state["text"] = f"{body.text} by {client.device} from {client.address}"
        return state

    served = serve(patch_item)

    def patch(text: str, **headers: str) -> Any:
        return served.patch("/item", json={"text": text}, headers={"X-Forwarded-For": "203.0.113.4", **headers})

    first = patch("first", **{"User-Agent": "cli"})
    assert first.json == {"text": "first by cli from 203.0.113.4"}
    current = first.headers["ETag"]
    for wrong in ('"other"', f"W/{current}", current.strip('"'), '""'):
        refused = patch("wrong", **{"If-Match": wrong})
        assert (refused.status_code, refused.json["type"]) == (412, "urn:aegis:problem:precondition-failed")
    assert patch("second", **{"If-Match": f'"other", {current}'}).status_code == 200
    assert patch("stale", **{"If-Match": current}).status_code == 412
    assert patch("any", **{"If-Match": "*"}).status_code == 200


def test_a_compressed_body_is_refused_with_what_is_taken(address: str) -> None:
    """RFC 9110, 15.5.16."""
    body = gzip.compress(json.dumps({"email": address, "password": PASSWORD}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = client("register").post("/api/v1/users", data=body, headers=headers)
    assert (answer.status_code, answer.get_json()["type"]) == (415, "urn:aegis:problem:unsupported-content-encoding")
    assert answer.headers["Accept-Encoding"] == "identity"


def test_a_profile_that_is_unchanged_is_a_304(active_user: User) -> None:
    tokens = log_in(active_user)
    for _ in range(2):  # from the database, then from the cache
        first = call("get_profile", tokens)
        tag = first.headers["ETag"]
        for same in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            unchanged = call("get_profile", tokens, headers={"If-None-Match": same})
            assert (unchanged.status_code, unchanged.data, unchanged.headers["ETag"]) == (304, b"", tag)
            assert "Content-Type" not in unchanged.headers
        other = call("get_profile", tokens, headers={"If-None-Match": '"other"'})
        assert (other.status_code, other.data) == (200, first.data)


def test_nobody_learns_by_a_304_what_they_may_not_read(active_user: User) -> None:
    tag = call("get_profile", log_in(active_user)).headers["ETag"]
    assert call("get_profile", headers={"If-None-Match": tag}).status_code == 401


def test_a_role_takes_a_session_with_a_second_factor(serve: Serve, active_user: User, address: str) -> None:
    @http_function("GET", "/all", role="admin")
    def get_all(caller: Caller) -> Answer:
        return Answer(text=str(caller.user_id))

    served = serve(get_all)
    admin, tokens = create_admin("x" + address)
    assert served.get("/all", headers=bearer(tokens)).status_code == 200
    weak = served.get("/all", headers=bearer(session_of(admin)))
    assert weak.status_code == 401
    assert "insufficient_user_authentication" in weak.headers["WWW-Authenticate"]
    assert weak.get_json()["reason"] == "second-factor-missing"
    assert served.get("/all", headers=bearer(session_of(active_user))).status_code == 403
    assert served.get("/all").status_code == 401


def test_a_token_in_another_scheme_or_in_the_query_is_none(active_user: User) -> None:
    tokens = log_in(active_user)
    for authorization in ("", "Bearer", "Bearer ", f"Basic {tokens['access_token']}", tokens["access_token"]):
        assert call("get_profile", headers={"Authorization": authorization}).status_code == 401
    assert call("get_profile", query={"access_token": tokens["access_token"]}).status_code == 401
    for scheme in ("bearer ", "Bearer  ", "BEARER   "):  # 1*SP (RFC 6750, 2.1); case-insensitive (RFC 9110, 11.1)
        assert call("get_profile", headers={"Authorization": f"{scheme}{tokens['access_token']}"}).status_code == 200


@pytest.mark.parametrize("name", ["user", "user_id", "db", "bodies"])
def test_a_parameter_that_nobody_gives_is_refused_at_import(name: str) -> None:
    def handler(**_: object) -> None: ...

    handler.__annotations__ = {name: str, "return": None}
    with pytest.raises(TypeError, match=f"handler takes {name}, which is not available"):
        http_function("GET", "/never/{item_id}")(handler)
    assert "handler" not in HTTP_FUNCTIONS


def an_error(_: str) -> Any:
    raise RuntimeError


@pytest.fixture
def every_answer(serve: Serve, active_user: User, monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """One answer of each kind, by its status."""

    @http_function("PUT", "/limited", status=204, limits={"address": "1/hour"})
    def put_limited() -> None:
        pass

    tokens, limited = log_in(active_user), serve(put_limited)
    once = {"X-Forwarded-For": f"2001:db8:{uuid.uuid4().hex[:4]}:{uuid.uuid4().hex[:4]}::1"}
    answers: list[Callable[[], Any]] = [
        lambda: call("get_profile", tokens),
        lambda: call("get_profile", tokens, headers={"If-None-Match": "*"}),
        lambda: limited.put("/limited", headers=once),
        lambda: limited.put("/limited", headers=once),
        lambda: client("login").post(LOGIN, data=b"{", content_type="application/json"),
        lambda: call("get_profile"),
        lambda: client("login").get("/nowhere"),
        lambda: client("login").get(LOGIN),
        lambda: client("login").post(LOGIN, data=b" " * (MAX_BODY_BYTES + 1), content_type="application/json"),
        lambda: client("login").post(LOGIN, data=b"{}"),
        lambda: call("login", body={}),
        lambda: client("fallback").open(
            f"/unrouted{ME}", method="OPTIONS", headers={"Access-Control-Request-Method": "GET"}
        ),
    ]
    found = {answer.status_code: answer for answer in (answer() for answer in answers)}
    monkeypatch.setattr("functions.login.verify_password", an_error)
    found[500] = call("login", body={"email": active_user.email, "password": PASSWORD})
    return found


def test_every_kind_of_answer_has_the_security_headers_and_is_not_stored(every_answer: dict[int, Any]) -> None:
    assert every_answer.keys() == {200, 204, 304, 400, 401, 404, 405, 413, 415, 422, 429, 500}
    for status, answer in every_answer.items():
        headers = answer.headers
        assert headers["Cache-Control"] == "no-store", status
        assert headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Request-Id"]
        if status >= 400:
            assert (answer.content_type, answer.json["status"]) == ("application/problem+json", status)


def test_a_handler_may_allow_the_caching_of_what_is_nobodys(serve: Serve) -> None:
    @http_function("GET", "/public")
    def get_public() -> Reply[Answer]:
        return Reply(Answer(text="of all"), {"Cache-Control": "public, max-age=60"})

    answer = serve(get_public).get("/public")
    assert answer.headers.getlist("Cache-Control") == ["public, max-age=60"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
