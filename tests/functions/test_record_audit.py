"""Recording events in the audit trail."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from uuid_utils.compat import uuid7

from knative.local.supervisor import Supervisor
from shared.events.delivery_tokens import authorization
from shared.postgresql.pool import engine
from shared.postgresql.tables import account, audit
from shared.postgresql.transactions import transaction
from tests.conftest import User, client, envelope, owner, post, somebody_waits_for, wait_for
from tests.servers import function_process, kill, post_event, start_again

LOGGED_OUT = "com.aegis.user.logged_out.v1"
PROFILE_UPDATED = "com.aegis.user.profile_updated.v1"
RESET = "com.aegis.user.password_reset_requested.v1"


def event(type_: str = LOGGED_OUT, **changes: str) -> dict[str, str]:
    return envelope(type_, **{"time": "2025-01-02T03:04:05+00:00", "requestid": "the-request", **changes})


def deliver(user_id: uuid.UUID, headers: dict[str, str]) -> Any:
    return post("record_audit", "/", {"user_id": str(user_id), "session_id": str(user_id)}, **headers)


def rows(user_id: uuid.UUID) -> list[Any]:
    with transaction() as connection:
        return list(connection.execute(select(audit).where(audit.c.account_id == user_id)).all())


def test_an_event_is_recorded_as_it_was(active_user: User) -> None:
    headers = event()
    assert deliver(active_user.id, headers).status_code == 204
    (row,) = rows(active_user.id)
    assert str(row.event_id) == headers["ce-id"]
    assert (row.type, row.request_id) == (LOGGED_OUT, "the-request")
    assert row.occurred_at.isoformat() == "2025-01-02T03:04:05+00:00"
    assert row.data == {"user_id": str(active_user.id), "session_id": str(active_user.id)}


def test_an_event_delivered_many_times_is_recorded_once(active_user: User) -> None:
    headers = event()
    with ThreadPoolExecutor(4) as pool:
        statuses = {answer.status_code for answer in pool.map(lambda _: deliver(active_user.id, headers), range(8))}
    assert statuses == {204}
    # The same id from elsewhere passes the check on deliveries, and still is there only once.
    assert deliver(active_user.id, headers | {"ce-source": "/elsewhere"}).status_code == 204
    assert len(rows(active_user.id)) == 1


def test_a_process_that_dies_meanwhile_leaves_nothing_behind_and_the_next_delivery_records_it(
    active_user: User, supervisor: Supervisor
) -> None:
    headers = {**event(), **authorization("record-audit")}
    data = {"user_id": str(active_user.id), "session_id": str(active_user.id)}
    server, url = function_process("record_audit")
    supervisor.start(server)
    supervisor.wait_until_ready(server, seconds=30)
    with ThreadPoolExecutor(1) as pool:
        with engine().connect() as connection:  # never committed
            row = {"event_id": headers["ce-id"], "account_id": active_user.id, "type": "", "occurred_at": func.now()}
            connection.execute(insert(audit).values(**row, request_id="", data={}))
            delivery = pool.submit(post_event, url, data, headers)
            wait_for(lambda: somebody_waits_for(connection))
            kill(server)
        assert isinstance(delivery.exception(), urllib3.exceptions.HTTPError)
    assert rows(active_user.id) == []
    start_again(supervisor, server)
    assert wait_for(lambda: post_event(url, data, headers) == 204)
    assert len(rows(active_user.id)) == 1


def test_strangers_do_not_fill_it(active_user: User) -> None:
    nobody = uuid7()
    assert deliver(nobody, event(RESET)).status_code == 204
    assert rows(nobody) == []
    assert deliver(active_user.id, event(RESET)).status_code == 204
    assert len(rows(active_user.id)) == 1


def test_what_is_told_of_a_purged_account_is_recorded(active_user: User) -> None:
    deliver(active_user.id, event())
    with transaction() as connection:
        connection.execute(delete(account).where(account.c.id == active_user.id))
    assert deliver(active_user.id, event("com.aegis.user.purged.v1")).status_code == 204
    assert {row.type for row in rows(active_user.id)} == {LOGGED_OUT, "com.aegis.user.purged.v1"}


@pytest.mark.parametrize("write", [str, lambda id_: str(id_).upper()], ids=["lower case", "upper case"])
def test_an_id_is_recorded_in_whichever_case_it_comes(active_user: User, write: Callable[[uuid.UUID], str]) -> None:
    id_ = uuid7()
    assert deliver(active_user.id, event(id=write(id_))).status_code == 204
    assert [row.event_id for row in rows(active_user.id)] == [id_]


@pytest.mark.parametrize(
    "write",
    [
        lambda id_: id_.hex,
        lambda id_: id_.urn,
        lambda id_: f"{{{id_}}}",
        lambda id_: str(id_)[:8],
    ],
    ids=["no dashes", "a URN", "in braces", "a part"],
)
def test_an_event_whose_id_is_no_uuid_of_rfc_9562_is_refused_for_good(
    active_user: User, write: Callable[[uuid.UUID], str]
) -> None:
    assert deliver(active_user.id, event(id=write(uuid7()))).status_code == 422
    assert rows(active_user.id) == []


@pytest.mark.parametrize(
    ("written", "recorded"),
    [
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05+00:00"),
        ("2025-01-02t03:04:05.25z", "2025-01-02T03:04:05.250000+00:00"),
        ("2025-01-02T12:04:05.123456789+09:00", "2025-01-02T03:04:05.123456+00:00"),
        ("2024-02-29T23:59:59-23:59", "2024-03-01T23:58:59+00:00"),
    ],
)
def test_a_time_is_recorded_however_rfc_3339_lets_it_be_written(active_user: User, written: str, recorded: str) -> None:
    assert deliver(active_user.id, event(time=written)).status_code == 204
    assert [row.occurred_at.isoformat() for row in rows(active_user.id)] == [recorded]


@pytest.mark.parametrize(
    "time",
    [
        *("", "noon", "2025-01-02", "2025-01-02T03:04:05", "2025-01-02T03:04Z", "20250102T030405Z", "1735787045"),
        *("2025-01-02 03:04:05Z", "2025-W01-4T03:04:05Z", "2025-01-02T03:04:05+0900", "2025-01-02T03:04:05,5Z"),
        *("2025-02-30T03:04:05Z", "2025-01-02T24:00:00Z", "2025-01-02T03:04:05+24:00", "2025-01-02T03:04:05+09:00:30"),
        # There is no such time in UTC that Python could read again.
        *("0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"),
    ],
)
def test_an_event_whose_time_is_none_of_rfc_3339_is_refused_for_good(active_user: User, time: str) -> None:
    assert deliver(active_user.id, event(time=time)).status_code == 400
    assert rows(active_user.id) == []


def test_an_event_without_a_time_is_refused_and_not_recorded_as_of_now(active_user: User) -> None:
    headers = event()
    del headers["ce-time"]
    answer = deliver(active_user.id, headers)
    assert (answer.status_code, answer.json["detail"]) == (422, "The event has no time (RFC 3339).")
    structured = {name.removeprefix("ce-"): value for name, value in headers.items()}
    data = {"user_id": str(active_user.id), "session_id": str(active_user.id)}
    answer = client("record_audit").post(
        "/", data=json.dumps(structured | {"data": data}), content_type="application/cloudevents+json"
    )
    assert answer.status_code == 422
    assert rows(active_user.id) == []


def test_text_that_postgresql_cannot_store_is_refused_for_good(active_user: User) -> None:
    for text_ in ("\0", "\ud800"):
        data = {"user_id": str(active_user.id), "fields": ["name", text_]}
        assert post("record_audit", "/", data, **event(PROFILE_UPDATED)).status_code == 422
    assert rows(active_user.id) == []


attributes = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(st.characters(exclude_categories=()), max_size=20)
        for name in ("id", "source", "time", "subject", "requestid", "partitionkey", "dataschema")
    },
)


@settings_of_hypothesis(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes, st.lists(st.text(st.characters(exclude_categories=()), max_size=5), max_size=2))
def test_whatever_an_event_holds_it_is_recorded_or_refused_for_good(
    active_user: User, changes: dict[str, str], fields: list[str]
) -> None:
    known = {name.removeprefix("ce-"): value for name, value in event(PROFILE_UPDATED).items()}
    data = {"user_id": str(active_user.id), "fields": fields}
    sent = json.dumps(known | changes | {"data": data})
    answer = client("record_audit").post("/", data=sent, content_type="application/cloudevents+json")
    assert answer.status_code in (204, 400, 422)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET type = 'x' WHERE account_id = :id",
        "DELETE FROM audit WHERE account_id = :id",
        "TRUNCATE audit",
    ],
)
def test_nobody_changes_what_is_recorded(active_user: User, statement: str) -> None:
    deliver(active_user.id, event())
    parameters = {"id": active_user.id} if ":id" in statement else {}
    with pytest.raises(DBAPIError, match="append-only"), owner().begin() as connection:
        connection.execute(text(statement), parameters)
    assert len(rows(active_user.id)) == 1
