"""Recording events in the audit trail."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from uuid_utils.compat import uuid7

from knative.local.supervisor import Supervisor
from shared.database import engine, transaction
from shared.tables import account, audit
from tests.conftest import User, envelope, post, somebody_waits_for, wait_for
from tests.servers import function_process, kill, post_event, start_again

LOGGED_OUT = "com.aegis.user.logged_out.v1"
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
    headers = event()
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


@pytest.mark.parametrize("change", [{"id": "1"}, {"time": "noon"}, {"time": "2025-01-02T03:04:05"}], ids=str)
def test_an_event_without_id_or_time_is_refused_for_good(active_user: User, change: dict[str, str]) -> None:
    headers = event(**change) if "id" not in change else event(id=uuid.uuid4().hex[:8])
    assert deliver(active_user.id, headers).status_code == 422
    assert rows(active_user.id) == []


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
    with pytest.raises(DBAPIError, match="append-only"), transaction() as connection:
        connection.execute(text(statement), parameters)
    assert len(rows(active_user.id)) == 1
