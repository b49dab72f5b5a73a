"""Reads on a replica: who may be answered from there, and that nobody notices when it fails."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from knative.local import servers
from knative.local.supervisor import Process, Supervisor
from shared.events import relay
from shared.events.types import DataExported, LoggedIn
from shared.postgresql import own_writes
from shared.postgresql.replica import read
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.runtime.probes import Heart
from shared.runtime.settings import settings
from tests.conftest import (
    User,
    call,
    counted,
    create_admin,
    create_user,
    id_of,
    log_in,
    session_of,
    until_stopped,
    wait_for,
)
from tests.servers import forget_settings, kill, redis_client, start_again

Admin = tuple[User, dict[str, Any]]


def on_replica(query: str) -> Any:
    """What the replica answers, however far it is behind."""
    url = make_url(settings().replica_database_url).set(drivername="postgresql+pg8000")
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            return connection.scalar(text(query))
    finally:
        engine.dispose()


def catch_up() -> None:
    """Waits until the replica has all that the primary has."""
    with transaction() as connection:
        position = connection.scalar(text("SELECT pg_current_wal_insert_lsn()::text"))
    wait_for(lambda: on_replica(f"SELECT pg_last_wal_replay_lsn() >= '{position}'"))


def stand_still() -> None:
    """From now on the replica has what it has now."""
    catch_up()
    on_replica("SELECT pg_wal_replay_pause()")
    wait_for(lambda: on_replica("SELECT pg_get_wal_replay_pause_state() = 'paused'"))


def without_recent_writes(*people: tuple[User, dict[str, Any]]) -> None:
    """Lets people have a session that is known, and have written nothing for long."""
    for user, tokens in people:
        assert call("get_profile", tokens).status_code == 200
        redis_client().delete(own_writes.key(user.id))


def reads(outcome: str) -> float:
    return counted("tolerant_reads_total", outcome=outcome)


def status_of(user: User, tokens: dict[str, Any]) -> str:
    return str(call("get_user", tokens, user_id=user.id).json["status"])


def suspend(user: User, tokens: dict[str, Any]) -> None:
    assert call("update_user", tokens, {"status": "suspended"}, user_id=user.id).status_code == 200


@pytest.fixture
def admins(own_replica: Process, address: str) -> list[Admin]:
    """Two administrators who have written nothing for long."""
    both = [create_admin(f"{name}-{address}") for name in ("first", "second")]
    without_recent_writes(*both)
    before = reads("replica")
    wait_for(lambda: call("list_users", both[0][1]).status_code == 200 and reads("replica") > before)
    return both


@pytest.fixture
def user(own_replica: Process, address: str) -> User:
    return create_user(address)


def test_what_may_be_seconds_old_comes_from_the_replica(admins: list[Admin], user: User) -> None:
    tokens = session_of(user)
    without_recent_writes((user, tokens))
    catch_up()
    before, (_, admin) = reads("replica"), admins[0]
    assert call("get_user", admin, user_id=user.id).json["email"] == user.email
    assert call("list_users", admin, query={"email": user.email}).json["users"][0]["id"] == str(user.id)
    (entry,) = call("list_audit", admin, user_id=user.id).json["entries"]
    assert entry["type"] == "com.aegis.user.logged_in.v1"
    assert call("export_data", tokens).json["account"]["email"] == user.email
    assert reads("replica") == before + 4


def test_who_has_changed_something_sees_it_at_once_and_others_when_the_replica_has_it(
    admins: list[Admin], user: User
) -> None:
    (_, first), (_, second) = admins
    stand_still()
    suspend(user, first)
    assert [status_of(user, tokens) for tokens in (first, second)] == ["suspended", "active"]
    found = [
        call("list_users", tokens, query={"email": user.email, "status": "suspended"}).json["users"]
        for tokens in (first, second)
    ]
    assert [len(users) for users in found] == [1, 0]
    on_replica("SELECT pg_wal_replay_resume()")
    catch_up()
    assert status_of(user, second) == "suspended"


def test_what_users_change_is_in_their_export_at_once(own_replica: Process, user: User) -> None:
    tokens = session_of(user)
    without_recent_writes((user, tokens))
    stand_still()
    exports = [call("export_data", tokens).json for _ in range(2)]
    assert [export["events"][0]["type"] for export in exports] == [LoggedIn.type, DataExported.type]
    redis_client().delete(own_writes.key(user.id))
    assert call("update_profile", tokens, {"name": "이서연"}).status_code == 200
    assert call("export_data", tokens).json["account"]["name"] == "이서연"


def test_who_logs_in_elsewhere_sees_that_session_at_once(own_replica: Process, user: User) -> None:
    tokens = session_of(user)
    without_recent_writes((user, tokens))
    stand_still()
    new = log_in(user)
    assert id_of(new) in [session["id"] for session in call("export_data", tokens).json["sessions"]]


def test_who_refreshes_sees_when_they_did_at_once(own_replica: Process, user: User) -> None:
    tokens = session_of(user)
    without_recent_writes((user, tokens))
    stand_still()
    assert call("refresh_token", body={"refresh_token": tokens["refresh_token"]}).status_code == 200
    (session,) = call("export_data", tokens).json["sessions"]
    assert session["last_used_at"] > session["created_at"]


def test_what_was_written_before_redis_lost_all_its_keys_is_still_seen(
    own_redis: Process, admins: list[Admin], user: User
) -> None:
    (_, first), _ = admins
    stand_still()
    suspend(user, first)
    redis_client().flushall()
    assert [status_of(user, first) for _ in range(3)] == ["suspended"] * 3


def test_while_redis_is_away_everybody_reads_from_the_primary(
    own_redis: Process, admins: list[Admin], user: User
) -> None:
    (_, first), (_, second) = admins
    stand_still()
    kill(own_redis)
    suspend(user, first)
    assert [status_of(user, tokens) for tokens in (first, second)] == ["suspended", "suspended"]


def test_without_its_replica_nobody_notices_and_it_is_asked_again_when_it_is_back(
    own_replica: Process, admins: list[Admin], user: User, supervisor: Supervisor
) -> None:
    (_, admin), _ = admins
    catch_up()
    assert status_of(user, admin) == "active"
    kill(own_replica)
    before = reads("unavailable")
    assert [status_of(user, admin) for _ in range(3)] == ["active"] * 3
    assert reads("unavailable") == before + 3
    start_again(supervisor, own_replica)
    before = reads("replica")
    wait_for(lambda: status_of(user, admin) == "active" and reads("replica") > before)


def leave_behind() -> None:
    stand_still()


def promote() -> None:
    catch_up()
    on_replica("SELECT pg_promote()")


@pytest.mark.parametrize("lose", [leave_behind, promote], ids=["lagging", "promoted"])
def test_a_replica_that_does_not_follow_any_more_is_soon_not_asked(
    lose: Callable[[], None], admins: list[Admin], user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, first), (_, second) = admins
    monkeypatch.setenv("REPLICA_MAX_LAG_SECONDS", "3")
    forget_settings()
    lose()
    before = reads("lagging")
    suspend(user, first)
    wait_for(lambda: status_of(user, second) == "suspended")
    assert reads("lagging") > before


def test_a_query_that_the_replica_ends_to_follow_the_primary_is_answered_by_the_primary(
    own_replica: Process, user: User
) -> None:
    on_replica_alone = ("psql", "--dbname", settings().replica_database_url, "--command")
    servers.run_program(*on_replica_alone, "ALTER SYSTEM SET max_standby_streaming_delay = 0")
    servers.run_program(*on_replica_alone, "SELECT pg_reload_conf()")
    create_user(f"another-{user.email}")
    catch_up()
    ends: list[DBAPIError] = []

    def count(connection: Connection) -> int:
        number = connection.scalar(select(func.count()).select_from(account)) or 0
        if not ends:
            for statement in ("DELETE FROM credential", "DELETE FROM account", "VACUUM account"):
                servers.run_program("psql", "--dbname", settings().database_url, "--command", statement)
            try:
                wait_for(lambda: connection.scalar(text("SELECT NULL")))
            except DBAPIError as error:
                ends.append(error)
                raise
        return number

    token = own_writes.may_lag.set(True)
    assert read(count) == 0
    own_writes.may_lag.reset(token)
    assert len(ends) == 1


def test_while_nobody_writes_the_relay_shows_how_far_the_replica_is(own_replica: Process, own_kafka: Process) -> None:
    latest = "SELECT pg_last_xact_replay_timestamp()"
    with until_stopped(lambda stopped: relay.run(stopped, Heart())):
        times: set[Any] = set()
        wait_for(lambda: times.add(on_replica(latest)) or len(times - {None}) >= 4)  # type: ignore[func-returns-value]


def test_beside_a_replica_a_known_profile_takes_one_round_trip_to_redis(
    own_redis: Process, own_replica: Process, user: User
) -> None:
    tokens = session_of(user)
    without_recent_writes((user, tokens))

    def round_trips() -> int:
        return int(redis_client().info("stats")["total_reads_processed"])

    before = round_trips()
    to_ask = round_trips() - before
    before = round_trips()
    assert call("get_profile", tokens).status_code == 200
    assert round_trips() - before - to_ask == 1
