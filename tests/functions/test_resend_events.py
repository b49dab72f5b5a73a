"""The round that finds what was lost on the way, whoever lost it."""

import uuid
from collections.abc import Collection
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select
from uuid_utils.compat import uuid7

from functions import resend_events
from knative.local.supervisor import Process
from knative.operations import dead_letters
from shared.events.types import LoggedOut, PhoneCodeRequested, UserRegistered, UserRestored
from shared.postgresql.tables import dead_letter, outbox, processed_event
from shared.postgresql.transactions import transaction
from shared.runtime.manifests import triggers
from tests.conftest import fire

LONG_AGO, JUST_NOW = timedelta(hours=2), timedelta(minutes=50)


def sent(type_: str, processed_by: Collection[str], ago: timedelta = LONG_AGO) -> uuid.UUID:
    """An event that was sent so long ago, and which of the functions have processed it."""
    id_, then = uuid7(), func.now() - ago
    row = {"id": id_, "type": type_, "subject": uuid7(), "data": {}, "request_id": ""}
    with transaction() as connection:
        connection.execute(insert(outbox).values(**row, occurred_at=then, sent_at=then))
        for function in processed_by:
            this = {"function": function, "event_id": f"/aegis/user-service {id_}"}
            connection.execute(insert(processed_event).values(**this, done_at=func.now()))
    return id_


def waiting() -> set[uuid.UUID]:
    """The events that the relay is to send."""
    with transaction() as connection:
        return set(connection.scalars(select(outbox.c.id).where(outbox.c.sent_at.is_(None))).all())


def test_an_event_that_a_function_did_not_process_is_sent_again(own_database: Process) -> None:
    unsent = sent(PhoneCodeRequested.type, [])
    unchecked = sent(UserRestored.type, ["send_email"])
    assert fire("resend_events").status_code == 204
    assert waiting() == {unsent, unchecked}


def test_an_event_that_every_function_has_processed_is_left_alone(own_database: Process) -> None:
    sent(UserRestored.type, ["verify_business", "send_email"])
    sent(PhoneCodeRequested.type, ["send_sms"])
    fire("resend_events")
    assert waiting() == set()


def test_an_event_that_no_function_takes_is_left_alone(own_database: Process) -> None:
    sent(LoggedOut.type, [])
    fire("resend_events")
    assert waiting() == set()


def test_an_event_that_may_be_on_its_way_is_left_alone(own_database: Process) -> None:
    sent(UserRegistered.type, [], ago=JUST_NOW)
    fire("resend_events")
    assert waiting() == set()


def test_a_delivery_that_began_and_never_ended_is_made_again(own_database: Process) -> None:
    id_ = sent(PhoneCodeRequested.type, [])
    with transaction() as connection:
        this = {"function": "send_sms", "event_id": f"/aegis/user-service {id_}"}
        connection.execute(insert(processed_event).values(this))
    fire("resend_events")
    assert waiting() == {id_}


def test_a_dead_letter_waits_for_an_operator(own_database: Process) -> None:
    id_ = sent(PhoneCodeRequested.type, [])
    row = {
        "function": "send_sms",
        "source": "/aegis/user-service",
        "event_id": str(id_),
        "type": PhoneCodeRequested.type,
    }
    with transaction() as connection:
        connection.execute(insert(dead_letter).values(**row, attributes={}, data=b"", error="500"))
    fire("resend_events")
    assert waiting() == set()
    assert dead_letters.drop(dead_letters.Chosen(function="send_sms")).text == "1 dropped."
    fire("resend_events")
    assert waiting() == set()


def test_all_that_was_lost_is_found_in_small_steps(own_database: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resend_events, "BATCH", 3)
    lost = {sent(PhoneCodeRequested.type, []) for _ in range(10)}
    for _ in range(10):
        sent(PhoneCodeRequested.type, ["send_sms"])
    fire("resend_events")
    assert waiting() == lost


def test_no_trigger_still_tries_when_an_event_counts_as_lost() -> None:
    for trigger in triggers():
        # Knative's broker doubles the pause with each retry, from twice the delay on, and has no upper bound.
        pauses = sum(trigger.backoff_seconds * 2**retry for retry in range(1, trigger.retries + 1))
        assert pauses + trigger.timeout_seconds * (trigger.retries + 1) < resend_events.LATE.total_seconds() / 2
