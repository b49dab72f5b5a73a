"""Keeping what could not be delivered, whatever it is."""

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import func, select, update

from shared.events import dead_letters
from shared.postgresql.tables import dead_letter
from shared.postgresql.transactions import transaction
from tests.conftest import client, envelope

REGISTERED = "com.aegis.user.registered.v1"
DATA = b'{"user_id": "0190c7a0-0000-7000-8000-000000000000", "locale": "ko"}'
PROBLEM = {
    "type": "urn:aegis:problem:service-unavailable",
    "title": "The service is not available right now",
    "status": 503,
    "detail": "The mail provider answered 429.",
    "request_id": "r",
}


def given_up(data: bytes, headers: Mapping[str, str], *, code: str = "503", **error: str) -> None:
    """Sends what a broker gives up, with the attributes that Knative adds."""
    destination = error.pop("dest", "http://tested.aegis-user-service.svc.cluster.local")
    extensions = {"knativeerrordest": destination, "knativeerrorcode": code, **error}
    sent = {"Content-Type": "application/json", **headers, **{f"ce-{k}": v for k, v in extensions.items() if v}}
    response = client("keep_dead_letter").post("/", data=data, headers=sent)
    assert (response.status_code, response.data) == (204, b"")


def kept(event_id: str) -> Any:
    with transaction() as connection:
        return connection.execute(select(dead_letter).where(dead_letter.c.event_id == event_id)).one()


def kept_data(data: bytes, content_type: str | None) -> Any:
    """What was kept of what is no event."""
    query = select(dead_letter).where(dead_letter.c.data == data, dead_letter.c.source == "")
    with transaction() as connection:
        return connection.execute(query.where(dead_letter.c.content_type.is_not_distinct_from(content_type))).one()


def test_an_event_is_kept_with_all_attributes_and_the_reason() -> None:
    headers = envelope(REGISTERED, subject="a-user", time="2026-01-02T03:04:05+00:00", requestid="the-request")
    said = base64.b64encode(json.dumps(PROBLEM).encode()).decode()  # as Knative has it
    given_up(DATA, headers, knativeerrordata=said)
    row = kept(headers["ce-id"])
    assert (row.function, row.source, row.type) == ("tested", "/aegis/user-service", REGISTERED)
    assert (row.subject, row.data, row.content_type) == ("a-user", DATA, "application/json")
    assert row.attributes == {name.removeprefix("ce-"): value for name, value in headers.items()}
    assert row.error == "503 The mail provider answered 429."
    assert (row.count, row.retried_at, row.first_at) == (1, None, row.last_at)


def test_what_comes_twice_counts_once_and_after_a_retry_once_more() -> None:
    headers = envelope(REGISTERED)
    for _ in range(2):
        given_up(DATA, headers)
    first = kept(headers["ce-id"])
    assert (first.count, first.error) == (1, "503")
    with transaction() as connection:
        this = dead_letter.c.number == first.number
        connection.execute(update(dead_letter).where(this).values(retried_at=func.now()))
    for _ in range(2):
        given_up(DATA, headers, code="422")
    again = kept(headers["ce-id"])
    assert (again.number, again.count, again.error, again.retried_at) == (first.number, 2, "422", None)
    assert again.first_at == first.first_at < again.last_at


def test_an_event_that_two_functions_could_not_process_is_two_dead_letters() -> None:
    headers = envelope(REGISTERED)
    for service in ("send-email", "verify-business"):
        given_up(DATA, headers, dest=f"http://{service}.aegis-user-service.svc.cluster.local")
    with transaction() as connection:
        query = select(dead_letter.c.function).where(dead_letter.c.event_id == headers["ce-id"])
        assert sorted(connection.scalars(query)) == ["send_email", "verify_business"]


@pytest.mark.parametrize(
    ("destination", "function"),
    [
        ("http://send-email.aegis-user-service.svc.cluster.local", "send_email"),
        ("http://send-email.aegis-user-service.svc.cluster.local/", "send_email"),
        ("http://127.0.0.1:8081/verify-business", "verify_business"),
        ("http://127.0.0.1:8081/", "unknown"),
        ("http://[::1", "unknown"),
        ("nonsense", "nonsense"),
        ("", "unknown"),
        (quote("http://한"), "unknown"),
        ("x" * 5000, "unknown"),
    ],
)
def test_the_function_is_the_one_at_the_address_that_failed(destination: str, function: str) -> None:
    headers = envelope(REGISTERED)
    given_up(DATA, headers, dest=destination)
    assert kept(headers["ce-id"]).function == function


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [
        ("503", "", "503"),
        ("", "", "no answer"),
        ("ReadTimeoutError", "", "ReadTimeoutError"),
        ("500", encoded(b"<html>broken</html>"), "500 <html>broken</html>"),
        ("500", quote("<html>broken</html>"), "500 <html>broken</html>"),
        ("400", quote(json.dumps(PROBLEM)), "400 The mail provider answered 429."),
        ("400", encoded(json.dumps(PROBLEM).encode()[:60]), "400 " + json.dumps(PROBLEM)[:60]),
        ("400", encoded("사용자".encode()[:-1]), "400 사용"),
        ("400", encoded(b'{"detail": "a\\u0000b\\ud800"}'), "400 a\N{REPLACEMENT CHARACTER}b?"),
        ("400", encoded(b"[" * 500), "400 " + "[" * 500),
        ("400", encoded(b'{"detail": {"a": 1}}'), "400 {'a': 1}"),
        ("400", encoded(b"\xff\xfe\x00"), "400 " + encoded(b"\xff\xfe\x00")),
        ("400", "x" * 5000, "400 " + "x" * 996),
    ],
)
def test_the_reason_is_what_a_person_can_read_of_it(code: str, said: str, error: str) -> None:
    headers = envelope(REGISTERED)
    given_up(DATA, headers, code=code, knativeerrordata=said)
    assert kept(headers["ce-id"]).error == error


@pytest.mark.parametrize(
    ("attribute", "stored"),
    [
        ("%ED%95%9C%20%22quoted%22%20100%25", '한 "quoted" 100%'),
        ("a%00b", "a\N{REPLACEMENT CHARACTER}b"),
        ("%FF%FE", "\N{REPLACEMENT CHARACTER}" * 2),
        ("%ED%A0%80", "\N{REPLACEMENT CHARACTER}" * 3),
        ("한".encode().decode("latin-1"), "한"),
        ("100%", "100%"),
        ("x" * 8000, "x" * 8000),
    ],
)
def test_attributes_are_stored_as_text_whatever_they_hold(attribute: str, stored: str) -> None:
    headers = envelope(REGISTERED, subject=attribute, odd=attribute)
    given_up(DATA, headers)
    row = kept(headers["ce-id"])
    assert (row.subject, row.attributes["odd"]) == (stored, stored)


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"{", "한".encode(), b"x" * 1024 * 1024])
def test_data_is_stored_as_it_came(data: bytes) -> None:
    headers = envelope(REGISTERED)
    given_up(data, headers | {"Content-Type": "application/octet-stream"})
    row = kept(headers["ce-id"])
    assert (row.data, row.content_type) == (data, "application/octet-stream")


@pytest.mark.parametrize(
    "change", [{"ce-id": ""}, {"ce-source": ""}, {"ce-id": "x" * 600}, {"ce-source": "한" * 200, "ce-id": "y" * 400}]
)
def test_what_has_no_usable_identity_is_kept_once_by_what_it_holds(change: dict[str, str]) -> None:
    one = envelope(REGISTERED, nonce=envelope("")["ce-id"]) | {k: quote(v) for k, v in change.items()}
    other = one | {"ce-nonce": envelope("")["ce-id"]}
    for headers in (one, one, other):
        given_up(DATA, headers, knativeerrordata=envelope("")["ce-id"])
    query = select(dead_letter.c.event_id).where(
        dead_letter.c.attributes["nonce"].astext.in_([one["ce-nonce"], other["ce-nonce"]])
    )
    with transaction() as connection:
        ids = connection.scalars(query).all()
    assert len(ids) == 2
    assert all(event_id.startswith("sha256:") for event_id in ids)


def test_an_event_in_structured_mode_is_taken_apart() -> None:
    attributes = {name.removeprefix("ce-"): value for name, value in envelope(REGISTERED, number="1").items()}
    event = attributes | {"number": 1, "data": {"a": "한"}, "knativeerrorcode": 400}
    given_up(json.dumps(event).encode(), {"Content-Type": "application/cloudevents+json; charset=UTF-8"}, code="")
    row = kept(attributes["id"])
    assert (row.attributes, json.loads(row.data)) == (attributes, {"a": "한"})
    assert (row.content_type, row.error, row.function) == ("application/json", "400", "unknown")


def test_binary_data_of_an_event_in_structured_mode_is_decoded() -> None:
    attributes = {name.removeprefix("ce-"): value for name, value in envelope(REGISTERED).items()}
    event = attributes | {"datacontenttype": "image/png", "data_base64": "/wA="}
    given_up(json.dumps(event).encode(), {"Content-Type": "application/cloudevents+json"})
    row = kept(attributes["id"])
    assert (row.data, row.content_type) == (b"\xff\x00", "image/png")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"nonsense", b"\xff", b'"text"', b"[" * 50_000, b'{"id": "1", "data_base64": "!"}', b'{"id": "\xff"}'],
)
def test_what_is_no_event_in_structured_mode_is_kept_as_it_came(body: bytes) -> None:
    given_up(body, {"Content-Type": "application/cloudevents+json"})
    assert kept_data(body, "application/cloudevents+json").attributes == {}


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"id": null, "source": ["\\u0000"], "\\u0000": "\\ud800"}',
        b'{"id": "1", "source": {"a": 1e999}}',
        b'{"id": "\\u0000", "source": "\\u0000"}',
    ],
)
def test_odd_attributes_in_structured_mode_are_no_error(body: bytes) -> None:
    given_up(body, {"Content-Type": "Application/CloudEvents+JSON"})


def test_a_request_that_is_no_event_at_all_is_kept_too() -> None:
    given_up(b"hello", {"Content-Type": ""}, code="", dest="")
    row = kept_data(b"hello", None)
    assert (row.function, row.type, row.attributes, row.error) == ("unknown", "", {}, "no answer")


def test_what_is_larger_than_any_record_of_kafka_is_refused() -> None:
    response = client("keep_dead_letter").post("/", data=b"x" * (1024 * 1024 + 1), headers=envelope(REGISTERED))
    assert response.status_code == 413


def test_get_is_a_405() -> None:
    assert client("keep_dead_letter").get("/").status_code == 405


def test_the_open_ones_are_counted_by_function(own_database: object) -> None:
    def count() -> dict[str, int]:
        with transaction() as connection:
            return dead_letters.count(connection)

    assert count() == {}
    for service in ("send-email", "send-email", "verify-business"):
        given_up(DATA, envelope(REGISTERED), dest=f"http://{service}.x.svc.cluster.local")
    assert count() == {"send_email": 2, "verify_business": 1}
    with transaction() as connection:
        connection.execute(
            update(dead_letter).where(dead_letter.c.function == "verify_business").values(retried_at=func.now())
        )
    assert count() == {"send_email": 2}
