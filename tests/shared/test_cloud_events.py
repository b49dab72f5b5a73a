"""What is an event by its attributes, and what is a time (CloudEvents 1.0.2; RFC 3339)."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events.cloud_events import fault, parse_time

pytestmark = pytest.mark.no_service

EVENT = {"specversion": "1.0", "id": "1", "source": "/tests", "type": "tested"}
zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# A day from either end of what datetime knows, all zones have the time.
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones)

resembling = st.from_regex("[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-9:.+-]{8,14}Z?")


@given(times)
def test_a_time_is_read_as_it_was_meant_in_whichever_zone_it_was_written(time: datetime) -> None:
    assert parse_time(time.isoformat()) == time
    assert parse_time(time.astimezone(UTC).isoformat().replace("+00:00", "Z")) == time


@given(
    st.one_of(st.text(), st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-9:.+-]{8,14}Z?"), st.integers(), st.none())
)
def test_what_is_read_as_a_time_is_one_that_can_be_stored_and_read_again(given_: object) -> None:
    time = parse_time(given_)
    assert time is None or parse_time(time.isoformat()) == time


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_an_event_has_all_attributes_that_are_required(name: str) -> None:
    assert fault(EVENT) == ""
    assert fault({each: value for each, value in EVENT.items() if each != name})
    assert fault(EVENT | {name: ""})
    assert fault(EVENT | {name: 1})


@given(st.dictionaries(st.text(max_size=12), st.one_of(st.text(), st.integers(), st.none(), st.booleans())))
def test_any_attributes_are_told_to_be_an_event_or_why_not(attributes: dict[str, object]) -> None:
    assert isinstance(fault(EVENT | attributes), str)
