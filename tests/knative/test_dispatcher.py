"""The trigger dispatcher: each matching event reaches its function, in order, or the dead letters with the reason."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from knative import dispatcher
from knative.local import servers
from knative.local.supervisor import Process, Supervisor
from shared import kafka
from shared.manifests import Trigger, triggers
from shared.settings import settings
from tests.conftest import wait_for
from tests.providers import Answer, Provider, listening
from tests.servers import Own, kill, read_topic, start_again

TRIGGER = Trigger(
    name="tested",
    service="tested",
    filters=({"exact": {"type": "wanted"}},),
    retries=3,
    backoff_policy="linear",
    backoff_seconds=0.01,
    timeout_seconds=2,
    dead_letter_service="keep-dead-letter",
)


@pytest.fixture
def function() -> Iterator[Provider]:
    """An event function that takes all, unless it is told otherwise."""
    with listening(lambda _: Answer(204)) as server:
        yield server


def ids(function: Provider) -> list[str]:
    """Of the events that it was sent."""
    return [asked.headers["ce-id"] for asked in function.asked]


@pytest.fixture
def broker(own: Own) -> Process:
    process = own("KAFKA_BOOTSTRAP_SERVERS", *servers.kafka())
    ensure_topics()
    return process


def ensure_topics() -> None:
    admin = KafkaAdminClient(bootstrap_servers=settings().kafka_bootstrap_servers)
    kafka.ensure_topics(admin)
    admin.close()


@contextmanager
def consuming(url: str) -> Iterator[None]:
    stopped = threading.Event()
    thread = threading.Thread(target=dispatcher.consume, args=(TRIGGER, 0, url, False, stopped))
    thread.start()
    yield
    stopped.set()
    thread.join()


def send(*ids: str, type_: str = "wanted", **attributes: str) -> None:
    producer = KafkaProducer(bootstrap_servers=settings().kafka_bootstrap_servers, acks="all")
    for id_ in ids:
        event = {"specversion": "1.0", "id": id_, "source": "/tests", "type": type_, **attributes}
        producer.send(kafka.EVENTS, b'{"a": 1}', b"user", kafka.to_headers(event), partition=0).get(timeout=10)
    producer.close()


def dead_letters(count: int) -> list[Any]:
    """The dead letters, once there are so many; and those that come right after."""
    return read_topic(kafka.DEAD_LETTERS, 1, count)


def test_a_matching_event_arrives_as_a_binary_cloud_event(broker: Process, function: Provider) -> None:
    send("unwanted", type_="other")
    send("1", subject='한 "quoted" 100%')
    with consuming(function.url):
        wait_for(lambda: function.asked)
    (asked,) = function.asked
    assert asked.body == '{"a": 1}'
    assert asked.headers["content-type"] == "application/json"
    assert (asked.headers["ce-id"], asked.headers["ce-type"]) == ("1", "wanted")
    assert asked.headers["ce-subject"] == "%ED%95%9C%20%22quoted%22%20100%25"


def test_a_failed_delivery_is_repeated_and_the_next_event_waits(broker: Process, function: Provider) -> None:
    function.answers = [Answer(503), Answer(500), Answer(429)]
    send("1", "2")
    with consuming(function.url):
        wait_for(lambda: len(function.asked) == 5)
    assert ids(function) == ["1", "1", "1", "1", "2"]
    assert dead_letters(0) == []


def test_after_all_retries_an_event_is_a_dead_letter_with_the_reason(broker: Process, function: Provider) -> None:
    function.answers = [Answer(503)] * 4
    send("1", "2")
    with consuming(function.url):
        wait_for(lambda: ids(function)[-1:] == ["2"])
    (record,) = dead_letters(1)
    attributes = kafka.to_attributes(record.headers)
    assert attributes["id"] == "1"
    assert (attributes["knativeerrordest"], attributes["knativeerrorcode"]) == (function.url, "503")
    assert (record.key, record.value) == (b"user", b'{"a": 1}')


@pytest.mark.parametrize("status", [400, 401, 422])
def test_an_event_that_is_refused_for_good_is_a_dead_letter_at_once(
    broker: Process, function: Provider, status: int
) -> None:
    function.answers = [Answer(status)]
    send("1", "2")
    with consuming(function.url):
        wait_for(lambda: ids(function) == ["1", "2"])
    assert [kafka.to_attributes(record.headers)["knativeerrorcode"] for record in dead_letters(1)] == [str(status)]


def test_a_function_that_is_not_there_is_tried_again(broker: Process) -> None:
    send("1")
    with consuming(f"http://127.0.0.1:{servers.free_port()}/"):
        (record,) = dead_letters(1)
    assert kafka.to_attributes(record.headers)["knativeerrorcode"] == "NewConnectionError"


def test_an_event_in_hand_when_the_dispatcher_stops_is_delivered_again(broker: Process, function: Provider) -> None:
    function.answers = [Answer(503)] * 100
    slow = Trigger(**{**TRIGGER.__dict__, "retries": 100, "backoff_seconds": 0.1})
    send("1")
    stopped = threading.Event()
    thread = threading.Thread(target=dispatcher.consume, args=(slow, 0, function.url, False, stopped))
    thread.start()
    wait_for(lambda: function.asked)
    stopped.set()
    thread.join()
    function.answers = []
    before = len(function.asked)
    with consuming(function.url):
        wait_for(lambda: len(function.asked) > before)
    assert set(ids(function)) == {"1"}


def test_a_settled_event_is_not_delivered_again(broker: Process, function: Provider) -> None:
    send("1")
    with consuming(function.url):
        wait_for(lambda: function.asked)
    send("2")
    with consuming(function.url):
        wait_for(lambda: "2" in ids(function))
    assert ids(function) == ["1", "2"]


def test_a_record_that_is_no_event_is_passed_over(broker: Process, function: Provider) -> None:
    producer = KafkaProducer(bootstrap_servers=settings().kafka_bootstrap_servers)
    producer.send(kafka.EVENTS, b"\xff\x00", b"user", [("ce_id", b"\xff")], partition=0).get(timeout=10)
    producer.send(kafka.EVENTS, None, b"user", partition=0).get(timeout=10)
    producer.close()
    send("1")
    with consuming(function.url):
        wait_for(lambda: function.asked)
    assert ids(function) == ["1"]


@pytest.mark.parametrize(("policy", "waits"), [("exponential", [0.3, 0.6, 1.2, 2.4]), ("linear", [0.3, 0.6, 0.9, 1.2])])
def test_back_off_grows_as_stated(policy: str, waits: list[float]) -> None:
    trigger = Trigger(**{**TRIGGER.__dict__, "backoff_policy": policy, "backoff_seconds": 0.3})
    assert [dispatcher.backoff(trigger, attempt) for attempt in range(4)] == pytest.approx(waits)
    assert dispatcher.backoff(trigger, 300) == dispatcher.MAX_BACKOFF_SECONDS


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ((), True),
        (({"exact": {"type": "a.b"}},), True),
        (({"exact": {"type": "a"}},), False),
        (({"exact": {"missing": "a"}},), False),
        (({"prefix": {"type": "a."}}, {"suffix": {"type": ".b"}}), True),
        (({"prefix": {"type": "a."}}, {"suffix": {"type": ".c"}}), False),
        (({"any": [{"exact": {"type": "x"}}, {"exact": {"type": "a.b"}}]},), True),
        (({"all": [{"exact": {"type": "x"}}, {"exact": {"type": "a.b"}}]},), False),
        (({"not": {"exact": {"type": "x"}}},), True),
    ],
    ids=str,
)
def test_filters_pass_what_knative_passes(filters: tuple[dict[str, Any], ...], passes: bool) -> None:
    assert Trigger(**{**TRIGGER.__dict__, "filters": filters}).matches({"type": "a.b"}) is passes


def test_an_unknown_filter_dialect_is_an_error_and_not_a_match() -> None:
    with pytest.raises(ValueError, match="cesql"):
        Trigger(**{**TRIGGER.__dict__, "filters": ({"cesql": "true"},)}).matches({"type": "a.b"})


def test_every_trigger_waits_at_least_a_minute_before_it_gives_up() -> None:
    for trigger in triggers():
        assert sum(dispatcher.backoff(trigger, attempt) for attempt in range(trigger.retries)) > 60


def test_a_broker_that_forgets_is_read_from_the_beginning(
    broker: Process, function: Provider, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "triggers", lambda: (TRIGGER,))
    stopped = threading.Event()
    thread = threading.Thread(target=dispatcher.run, args=(function.url, stopped))
    thread.start()
    send("1")
    wait_for(lambda: ids(function) == ["1"])
    kill(broker)
    start_again(supervisor, broker)
    ensure_topics()
    send("2")
    wait_for(lambda: "2" in ids(function), seconds=30)
    stopped.set()
    thread.join()
