"""The outbox: what waits is never lost, what is old goes without a trace, and what was sent can be sent again."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, inspect, select, text
from uuid_utils.compat import uuid7

from knative.local.supervisor import Process
from shared.events import outbox
from shared.postgresql import partitions
from shared.postgresql.pool import engine
from shared.postgresql.tables import outbox as events
from shared.postgresql.transactions import transaction

DAY = timedelta(days=1)
NOW = datetime(2030, 5, 17, 12, tzinfo=UTC)


def put(occurred_at: datetime, *, is_sent: bool = True) -> uuid.UUID:
    id_ = uuid7()
    row = {"id": id_, "type": "tested", "subject": uuid7(), "data": {}, "request_id": ""}
    with transaction() as connection:
        connection.execute(
            insert(events).values(**row, occurred_at=occurred_at, sent_at=func.now() if is_sent else None)
        )
    return id_


def kept() -> set[uuid.UUID]:
    with transaction() as connection:
        return set(connection.scalars(select(events.c.id)).all())


def unsent() -> set[uuid.UUID]:
    with transaction() as connection:
        return set(connection.scalars(select(events.c.id).where(events.c.sent_at.is_(None))).all())


def partition_of(id_: uuid.UUID) -> str:
    with transaction() as connection:
        found = text("SELECT tableoid::regclass::text FROM outbox WHERE id = :id")
        return str(connection.scalar(found, {"id": id_}))


def partition_names() -> set[str]:
    return {name for name in inspect(engine()).get_table_names() if name.startswith("outbox_")}


@contextmanager
def writing() -> Iterator[Any]:
    """Somebody has written an event, and has not committed yet."""
    with transaction() as connection:
        row = {"id": uuid7(), "type": "tested", "subject": uuid7(), "data": {}, "request_id": ""}
        connection.execute(insert(events).values(row))
        yield


def test_events_of_a_day_have_a_partition_of_their_own(own_database: Process) -> None:
    partitions.keep_days(NOW)
    assert partition_of(put(NOW)) == "outbox_20300517"
    assert partition_of(put(NOW + 3 * DAY)) == "outbox_20300520"
    assert partition_of(put(datetime(2030, 5, 17, tzinfo=UTC))) == "outbox_20300517"


def test_an_event_is_taken_on_a_day_for_which_nobody_made_a_partition(own_database: Process) -> None:
    late = put(NOW)
    assert partition_of(late) == "outbox_other"
    partitions.keep_days(NOW)
    assert late in kept()
    assert partition_of(put(NOW + DAY)) == "outbox_20300518"


def test_sent_events_go_after_eight_days(own_database: Process) -> None:
    partitions.keep_days(NOW)
    old, other = put(NOW), put(NOW - 30 * DAY)
    partitions.keep_days(NOW + 8 * DAY)
    assert kept() == {old}
    partitions.keep_days(NOW + 9 * DAY)
    assert kept() == set()
    assert "outbox_20300517" not in partition_names()
    assert other not in kept()


def test_an_event_that_was_not_sent_stays_however_old(own_database: Process) -> None:
    partitions.keep_days(NOW)
    waiting, other = put(NOW, is_sent=False), put(NOW - 30 * DAY, is_sent=False)
    partitions.keep_days(NOW + 100 * DAY)
    assert kept() == {waiting, other}


def test_partitions_wait_for_writers_and_writers_do_not_wait_for_partitions(own_database: Process) -> None:
    with writing():
        partitions.keep_days(NOW)
    assert "outbox_20300517" not in partition_names()
    partitions.keep_days(NOW)
    assert "outbox_20300517" in partition_names()


def test_what_has_occurred_since_is_sent_again(own_database: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "AT_ONCE", 2)
    partitions.keep_days(NOW)
    put(NOW - DAY)
    again = {put(NOW + timedelta(minutes=minutes)) for minutes in range(5)}
    waiting = put(NOW + DAY, is_sent=False)
    assert outbox.send_again(NOW) == 5
    assert unsent() == again | {waiting}


def test_ten_thousand_sent_events_are_not_looked_at_for_one_that_waits(own_database: Process) -> None:
    partitions.keep_days(NOW)
    many = """
        INSERT INTO outbox (id, type, subject, data, request_id, occurred_at, sent_at)
        SELECT gen_random_uuid(), 'tested', gen_random_uuid(), '{}', '', :now, now() FROM generate_series(1, 10000)
    """
    with transaction() as connection:
        connection.execute(text(many), {"now": NOW})
    with transaction() as connection:
        connection.exec_driver_sql("ANALYZE outbox")
    waiting = put(NOW, is_sent=False)
    oldest = "SELECT id FROM outbox WHERE sent_at IS NULL ORDER BY position LIMIT 500"
    with transaction() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {oldest}").scalar_one()[0]["Plan"]
    assert waiting in unsent()
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 40
