"""What is left of those who do not come back."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Text, cast, func, insert, select, update
from uuid_utils.compat import uuid7

from functions import purge_withdrawn
from shared.postgresql.tables import account, audit, credential, metadata, phone_verification, session
from shared.postgresql.transactions import transaction
from shared.redis import cache
from shared.runtime.settings import settings
from shared.users import profiles
from tests.conftest import (
    User,
    add_business,
    call,
    create_user,
    events_of,
    fire,
    owner,
    session_of,
    withdrawn_since,
)

pytestmark = pytest.mark.usefixtures("alone")


def days() -> timedelta:
    return timedelta(days=settings().withdrawal_days)


def exists(user: User) -> bool:
    with transaction() as connection:
        return connection.scalar(select(account.c.id).where(account.c.id == user.id)) is not None


def test_all_personal_data_is_gone_and_the_audit_trail_stays_under_the_id_alone(active_user: User) -> None:
    session_of(active_user)
    add_business(active_user)
    with transaction() as connection:
        connection.execute(insert(phone_verification).values(account_id=active_user.id, phone="+821012345678"))
        connection.execute(
            insert(audit).values(
                event_id=uuid7(),
                account_id=active_user.id,
                type="com.aegis.user.logged_in.v1",
                occurred_at=func.now(),
                request_id="r",
                data={"user_id": str(active_user.id)},
            )
        )
    withdrawn_since(days(), active_user)
    assert fire("purge_withdrawn").status_code == 204
    assert not exists(active_user)
    left = {}
    with owner().connect() as connection:
        for table in metadata.sorted_tables:
            owned = [table.c[name] for name in ("account_id", "subject") if name in table.c]
            for column in owned:
                left[table.name] = connection.scalar(
                    select(func.count()).select_from(table).where(cast(column, Text) == str(active_user.id))
                )
    # Its id among those purged, so that no backup brings it back.
    assert {name for name, count in left.items() if count} == {"audit", "outbox", "purged_account"}
    assert events_of(active_user)[-1] == "purged"


def test_who_has_days_left_stays(active_user: User) -> None:
    withdrawn_since(days() - timedelta(minutes=1), active_user)
    fire("purge_withdrawn")
    assert exists(active_user)
    assert "purged" not in events_of(active_user)


def test_an_active_account_stays_whatever_its_past(active_user: User) -> None:
    with transaction() as connection:
        connection.execute(
            update(account).where(account.c.id == active_user.id).values(withdrawn_at=func.now() - 2 * days())
        )
    fire("purge_withdrawn")
    assert exists(active_user)


def test_their_profile_is_gone_from_the_cache(active_user: User) -> None:
    with transaction() as connection:
        profile = profiles.read(connection, active_user.id)
    assert profile
    profiles.put(profile)
    withdrawn_since(days(), active_user)
    fire("purge_withdrawn")
    assert cache.get(profiles.key(active_user.id)) in ([b""], [None])


def test_more_than_one_batch_goes_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge_withdrawn, "BATCH", 2)
    users = [create_user(f"{n}-{address}") for n in range(5)]
    withdrawn_since(days() * 10, *users)
    fire("purge_withdrawn")
    assert not any(exists(user) for user in users)
    assert all(events_of(user) == ["purged"] for user in users)


def test_the_address_may_be_registered_anew(active_user: User) -> None:
    withdrawn_since(days(), active_user)
    fire("purge_withdrawn")
    again = {"email": active_user.email, "password": active_user.password}
    assert call("register", body=again).status_code == 202
    with transaction() as connection:
        new = connection.execute(
            select(account.c.id, account.c.status).where(account.c.canonical_email == active_user.email)
        ).one()
    assert new.status == "pending"
    assert new.id != active_user.id


def test_who_logs_in_at_the_last_moment_is_restored_or_purged_and_never_half(address: str) -> None:
    """The days of each user end at another moment of the race."""
    users = [create_user(f"{n}-{address}") for n in range(12)]
    for n, user in enumerate(users):
        withdrawn_since(days() - timedelta(milliseconds=40 * n), user)
    with ThreadPoolExecutor(3) as pool:
        purges = [pool.submit(fire, "purge_withdrawn") for _ in range(8)]
        answers = list(
            pool.map(lambda user: call("login", body={"email": user.email, "password": user.password}), users)
        )
    assert {purge.result().status_code for purge in purges} == {204}
    for user, answer in zip(users, answers, strict=True):
        with transaction() as connection:
            row = connection.execute(
                select(account.c.status, account.c.withdrawn_at, credential.c.password_hash)
                .join(credential)
                .where(account.c.id == user.id)
            ).first()
            open_sessions = connection.scalar(
                select(func.count()).select_from(session).where(session.c.account_id == user.id)
            )
        if answer.status_code == 200:
            assert row
            assert (row.status, row.withdrawn_at, open_sessions) == ("active", None, 1)
            assert call("get_profile", answer.json).status_code == 200
            assert events_of(user) == ["restored", "logged_in"]
        else:
            assert answer.status_code == 401
            assert open_sessions == 0
            assert "restored" not in events_of(user)


def test_a_log_in_under_way_is_waited_for_by_nobody_and_wins(active_user: User) -> None:
    withdrawn_since(days(), active_user)
    with transaction() as connection:
        # As `sessions.log_in` that began before the days were over.
        connection.execute(select(account.c.id).where(account.c.id == active_user.id).with_for_update(key_share=True))
        assert fire("purge_withdrawn").status_code == 204
        connection.execute(
            update(account).where(account.c.id == active_user.id).values(status="active", withdrawn_at=None)
        )
    assert exists(active_user)
    fire("purge_withdrawn")
    assert exists(active_user)


def test_a_withdrawn_account_that_was_suspended_since_is_purged_too(active_user: User) -> None:
    withdrawn_since(days() + timedelta(hours=1), active_user)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(status="suspended"))
    fire("purge_withdrawn")
    assert not exists(active_user)
