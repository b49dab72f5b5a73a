"""The audit trail: PostgreSQL writes an entry for each event, in the transaction that announces it."""

import uuid
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import DBAPIError
from uuid_utils.compat import uuid7

from knative.local.supervisor import Process
from shared.events.outbox import announce
from shared.events.types import LoggedOut, PasswordResetRequested, ProfileUpdated, UserPurged
from shared.postgresql.migrate import migrate
from shared.postgresql.pool import engine
from shared.postgresql.tables import account, audit, outbox
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from tests.conftest import User, create_user, owner


def logged_out(user_id: uuid.UUID) -> LoggedOut:
    return LoggedOut(user_id=user_id, session_id=user_id)


def entries(user_id: uuid.UUID) -> list[Any]:
    with transaction() as connection:
        return list(connection.execute(select(audit).where(audit.c.account_id == user_id)).all())


def test_an_event_is_recorded_as_it_was_announced(active_user: User) -> None:
    logs.request_id.set("the-request")
    with transaction() as connection:
        announce(connection, logged_out(active_user.id))
    with transaction() as connection:
        event = connection.execute(select(outbox).where(outbox.c.subject == active_user.id)).one()
    (entry,) = entries(active_user.id)
    assert (entry.event_id, entry.type, entry.occurred_at) == (event.id, event.type, event.occurred_at)
    assert entry.request_id == "the-request"
    assert entry.data == {"user_id": str(active_user.id), "session_id": str(active_user.id)}


def test_events_that_are_announced_together_are_all_recorded(active_user: User) -> None:
    with transaction() as connection:
        announce(connection, logged_out(active_user.id), ProfileUpdated(user_id=active_user.id, fields=["name"]))
    assert len(entries(active_user.id)) == 2


def test_an_event_that_is_announced_again_is_recorded_once(active_user: User) -> None:
    event = {"id": uuid7(), "type": LoggedOut.type, "subject": active_user.id, "request_id": "", "data": {}}
    for _ in range(2):
        with transaction() as connection:
            connection.execute(insert(outbox).values(event))
    assert len(entries(active_user.id)) == 1


def test_a_change_that_fails_leaves_no_entry(active_user: User) -> None:
    def fail() -> None:
        with transaction() as connection:
            announce(connection, logged_out(active_user.id))
            connection.execute(text("SELECT 1 / 0"))

    with pytest.raises(DBAPIError):
        fail()
    assert entries(active_user.id) == []


def test_events_about_an_id_that_never_was_an_account_do_not_fill_it(active_user: User) -> None:
    nobody = uuid7()
    with transaction() as connection:
        announce(connection, PasswordResetRequested(user_id=nobody))
        announce(connection, PasswordResetRequested(user_id=active_user.id))
    assert entries(nobody) == []
    assert len(entries(active_user.id)) == 1


def test_an_event_about_a_purged_account_is_recorded(active_user: User) -> None:
    with transaction() as connection:
        announce(connection, logged_out(active_user.id))
    with transaction() as connection:
        connection.execute(delete(account).where(account.c.id == active_user.id))
        announce(connection, UserPurged(user_id=active_user.id))
    assert {entry.type for entry in entries(active_user.id)} == {LoggedOut.type, UserPurged.type}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET type = 'x' WHERE account_id = :id",
        "DELETE FROM audit WHERE account_id = :id",
        "TRUNCATE audit",
    ],
)
def test_nobody_changes_what_is_recorded(active_user: User, statement: str) -> None:
    with transaction() as connection:
        announce(connection, logged_out(active_user.id))
    parameters = {"id": active_user.id} if ":id" in statement else {}
    with pytest.raises(DBAPIError, match="append-only"), owner().begin() as connection:
        connection.execute(text(statement), parameters)
    assert len(entries(active_user.id)) == 1


def test_events_that_the_release_before_had_not_recorded_are_added_once(own_database: Process, address: str) -> None:
    user, recorded = create_user(address), uuid7()
    with engine().begin() as connection:
        connection.execute(text("DROP TRIGGER record_audit ON outbox"))
        connection.execute(text("DROP FUNCTION record_audit"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0013'"))
    event = {"type": LoggedOut.type, "subject": user.id, "request_id": "", "data": {}}
    with engine().begin() as connection:
        connection.execute(insert(outbox).values([event | {"id": recorded}, event | {"id": uuid7()}]))
        row = {"event_id": recorded, "account_id": user.id, "type": LoggedOut.type, "request_id": "", "data": {}}
        connection.execute(insert(audit).values(**row, occurred_at=text("now()")))
    migrate()
    assert len(entries(user.id)) == 2
