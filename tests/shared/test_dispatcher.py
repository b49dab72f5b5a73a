"""The trigger dispatcher: each matching event reaches its function, in order per user, or is kept with the reason."""

import base64
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaTimeoutError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata

from knative.local import servers
from knative.local.supervisor import Process, Supervisor
from shared.events import consumer_lag, deliveries, delivery, dispatcher, kafka
from shared.events.deliveries import (
    DELAYS,
    DELIVERIES,
    IN_FLIGHT,
    OUTCOMES,
    PASSED_OVER,
    Deliveries,
    DeliveriesCollector,
)
from shared.runtime import probes
from shared.runtime.manifests import Trigger, triggers
from shared.runtime.probes import Heart
from shared.runtime.settings import settings
from tests.conftest import until_stopped, wait_for
from tests.providers import Answer, Asked, Provider, listening
from tests.servers import kill, start_again

UNAVAILABLE = Answer(503)
URL = "http://127.0.0.1:{service}"
"""A function's name is its port here."""

TRIGGER = Trigger(
    name="tested",
    service="",
    filters=({"exact": {"type": "wanted"}},),
    retries=3,
    backoff_policy="linear",
    backoff_seconds=0.01,
    timeout_seconds=2,
    dead_letter_service="",
)


@pytest.fixture
def function() -> Iterator[Provider]:
    """An event function that takes all, unless it is told otherwise."""
    with listening(lambda _: Answer(204)) as server:
        yield server


@pytest.fixture
def keeper() -> Iterator[Provider]:
    """The function that keeps dead letters."""
    with listening(lambda _: Answer(204)) as server:
        yield server


@pytest.fixture
def trigger(function: Provider, keeper: Provider) -> Trigger:
    service, dead_letter_service = (str(server.server_address[1]) for server in (function, keeper))
    return replace(TRIGGER, service=service, dead_letter_service=dead_letter_service)


@pytest.fixture
def broker(own_kafka: Process) -> Process:
    ensure_topic()
    return own_kafka


def ensure_topic() -> str:
    with kafka.connected(KafkaAdminClient) as admin:
        return kafka.ensure_topic(admin)


@contextmanager
def consuming(*triggers: Trigger) -> Iterator[None]:
    with until_stopped(lambda stopped: dispatcher.run(URL, triggers, stopped, Heart())):
        yield


@contextmanager
def dispatching(supervisor: Supervisor, function: Provider) -> Iterator[Process]:
    """A dispatcher in a process of its own, with the triggers of the manifests."""
    environment = {**os.environ, "FUNCTION_URL": f"{function.url}/{{service}}"}
    process = Process("dispatcher", [sys.executable, "-m", "shared.events.dispatcher"], environment)
    supervisor.start(process)
    yield process
    terminate(process)


def terminate(process: Process) -> None:
    assert process.popen
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(30) == 0, "a pod has 30 s to end"


def send(*ids: str, user: str | None = "user", type_: str = "wanted", partition: int = 0, **attributes: str) -> None:
    send_all([(id_, user) for id_ in ids], type_, partition, **attributes)


def send_all(events: Sequence[tuple[str, str | None]], type_: str, partition: int | None, **attributes: str) -> None:
    """Sends events: pairs of an id and a user."""
    producer = KafkaProducer(bootstrap_servers=settings().kafka_bootstrap_servers, acks="all")
    for id_, user in events:
        event = {"specversion": "1.0", "id": id_, "source": "/tests", "type": type_, **attributes}
        key = user.encode() if user else None
        producer.send(kafka.EVENTS, b'{"a": 1}', key, kafka.to_headers(event), partition=partition)
    producer.flush()
    producer.close()


EVENT = {"specversion": "1.0", "id": "1", "source": "/tests", "type": "wanted"}


def produce(headers: list[Any], value: bytes | None = None) -> None:
    """Puts a record into the topic, as any producer could."""
    producer = KafkaProducer(bootstrap_servers=settings().kafka_bootstrap_servers)
    producer.send(kafka.EVENTS, value, b"user", headers, partition=0).get(timeout=10)
    producer.close()


def ids(function: Provider) -> list[str]:
    """Of the events that it was sent."""
    return [asked.headers["ce-id"] for asked in function.asked]


def failing(*ids: str, answer: Answer = UNAVAILABLE) -> Any:
    """What a function answers that takes all events but these."""
    return lambda asked: answer if asked.headers["ce-id"] in ids else Answer(204)


def test_a_matching_event_arrives_as_a_binary_cloud_event(
    broker: Process, function: Provider, trigger: Trigger
) -> None:
    send("unwanted", type_="other")
    send("1", subject='한 "quoted" 100%')
    with consuming(trigger):
        wait_for(lambda: function.asked)
    (asked,) = function.asked
    assert asked.body == '{"a": 1}'
    assert asked.headers["content-type"] == "application/json"
    assert (asked.headers["ce-id"], asked.headers["ce-type"]) == ("1", "wanted")
    assert asked.headers["ce-subject"] == "%ED%95%9C%20%22quoted%22%20100%25"


def test_events_of_all_partitions_arrive_also_where_somebody_has_made_more_than_we_do(
    own_kafka: Process, function: Provider, trigger: Trigger
) -> None:
    with kafka.connected(KafkaAdminClient) as admin:
        admin.create_topics([NewTopic(kafka.EVENTS, kafka.PARTITIONS + 2, -1)])
    with consuming(trigger):
        for partition in range(kafka.PARTITIONS + 2):
            send(f"{partition}", partition=partition)
        wait_for(lambda: len(function.asked) == kafka.PARTITIONS + 2)


def test_a_failed_delivery_is_repeated_and_the_next_event_waits(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger
) -> None:
    function.answers = [Answer(503), Answer(401), Answer(429)]
    send("1", "2")
    with consuming(trigger):
        wait_for(lambda: len(function.asked) == 5)
    assert ids(function) == ["1", "1", "1", "1", "2"]
    assert keeper.asked == []


def test_a_failing_event_holds_up_its_user_only(broker: Process, function: Provider, trigger: Trigger) -> None:
    function.answer = failing("1")
    send("1", "2", user="one")
    send("3", "4", user="another")
    with consuming(replace(trigger, retries=10**6)):
        wait_for(lambda: ids(function).count("1") > 3 and "4" in ids(function))
        assert "2" not in ids(function)
        function.answer = failing()
        wait_for(lambda: ids(function)[-2:] == ["1", "2"])
    assert [id_ for id_ in ids(function) if id_ in "34"] == ["3", "4"]


def test_users_whose_events_fail_do_not_hold_up_the_others_however_many_they_are(
    broker: Process, function: Provider, trigger: Trigger
) -> None:
    many = [f"failing-{number}" for number in range(3 * IN_FLIGHT)]
    function.answer = failing(*many)
    send_all([(id_, id_) for id_ in many], "wanted", 0)
    with consuming(replace(trigger, backoff_seconds=60)):
        wait_for(lambda: len(function.asked) == len(many))
        send("1")
        wait_for(lambda: ids(function)[-1] == "1")


def test_events_of_many_users_are_delivered_side_by_side_and_those_of_each_in_order(
    broker: Process, function: Provider, trigger: Trigger
) -> None:
    events = [(f"{number:03}", f"user-{number % 20}") for number in range(400)]
    under_way: Counter[str] = Counter()
    lock, all_at_once = threading.Lock(), threading.Event()
    most, most_of_one = 0, 0

    def answer(asked: Asked) -> Answer:
        nonlocal most, most_of_one
        user = asked.headers["ce-subject"]
        with lock:
            under_way[user] += 1
            most, most_of_one = max(most, under_way.total()), max(most_of_one, under_way[user])
        if most == IN_FLIGHT:
            all_at_once.set()
        all_at_once.wait(10)
        with lock:
            under_way[user] -= 1
        return Answer(204)

    function.answer = answer
    for user in {user for _, user in events}:
        send_all([event for event in events if event[1] == user], "wanted", None, subject=user)
    with consuming(trigger):
        wait_for(lambda: len(function.asked) == len(events))
    for user in {user for _, user in events}:
        sent = [id_ for id_, of in events if of == user]
        assert [asked.headers["ce-id"] for asked in function.asked if asked.headers["ce-subject"] == user] == sent
    assert (most_of_one, most) == (1, IN_FLIGHT)


def test_events_without_a_user_wait_for_those_before_in_their_partition(
    broker: Process, function: Provider, trigger: Trigger
) -> None:
    function.answer = failing("1")
    send("1", "2", user=None)
    send("3", user=None, partition=1)
    with consuming(replace(trigger, retries=10**6)):
        wait_for(lambda: ids(function).count("1") > 3 and "3" in ids(function))
        assert "2" not in ids(function)
        function.answer = failing()
        wait_for(lambda: ids(function)[-2:] == ["1", "2"])


def test_no_more_events_are_read_than_there_is_room_for(
    broker: Process, function: Provider, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = []

    class Recorded(Deliveries):
        def take(self, partition: TopicPartition, events: Sequence[tuple[Any, dict[str, str]]]) -> None:
            super().take(partition, events)
            waiting.append(self.waiting())

    monkeypatch.setattr(dispatcher, "Deliveries", Recorded)
    monkeypatch.setattr(dispatcher, "MAX_WAITING", 10)
    monkeypatch.setattr(dispatcher, "MAX_BATCH", 5)
    events = [(f"{number:03}", f"user-{number}") for number in range(60)]
    send_all(events, "wanted", None)
    with consuming(trigger):
        wait_for(lambda: sorted(ids(function)) == [id_ for id_, _ in events])
    assert max(waiting) < 10 + 5


def test_a_trigger_without_room_holds_up_no_other_and_gets_all_when_it_has(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "MAX_WAITING", 10)
    monkeypatch.setattr(dispatcher, "MAX_BATCH", 5)
    events = [(f"{number:03}", f"user-{number}") for number in range(60)]
    keeper.answer = lambda _: UNAVAILABLE
    send_all(events, "wanted", None)
    full = replace(trigger, name="full", service=trigger.dead_letter_service, retries=10**6)
    with consuming(trigger, full):
        wait_for(lambda: sorted(ids(function)) == [id_ for id_, _ in events])
        assert len(set(ids(keeper))) < 10 + 5
        keeper.answer = lambda _: Answer(204)
        wait_for(lambda: set(ids(keeper)) == {id_ for id_, _ in events})
        send("last")
        wait_for(lambda: ids(function)[-1] == ids(keeper)[-1] == "last")
    assert len(function.asked) == len(events) + 1


def test_without_events_no_thread_waits_for_them(
    broker: Process, function: Provider, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "LINGER_SECONDS", 0.1)
    with consuming(trigger):
        send("first", type_="other")
        send("1")
        wait_for(lambda: function.asked)
        wait_for(lambda: not [thread for thread in threading.enumerate() if "_work" in thread.name])
        send("2")
        wait_for(lambda: ids(function) == ["1", "2"])


def test_after_all_retries_an_event_is_a_dead_letter_with_the_reason(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger
) -> None:
    function.answers = [Answer(503)] * 3 + [Answer(500, body=b"\xffwhat went wrong" * 100)]
    send("1", "2", subject="한")
    with consuming(trigger):
        wait_for(lambda: ids(function)[-1:] == ["2"])
    assert ids(function) == ["1"] * 4 + ["2"]
    (kept,) = keeper.asked
    sent = {name: value for name, value in function.asked[0].headers.items() if name.startswith("ce-")}
    reason = {
        "ce-knativeerrordest": function.url,
        "ce-knativeerrorcode": "500",
        "ce-knativeerrordata": base64.b64encode((b"\xffwhat went wrong" * 100)[:1024]).decode(),
    }
    assert {name: value for name, value in kept.headers.items() if name.startswith("ce-")} == sent | reason
    assert (kept.body, kept.headers["content-type"]) == ('{"a": 1}', "application/json")


@pytest.mark.parametrize("status", [302, 307, 400, 403, 422])
def test_an_event_that_is_refused_for_good_is_a_dead_letter_at_once(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger, status: int
) -> None:
    function.answers = [Answer(status, headers={"Location": "/elsewhere"})]
    send("1", "2")
    with consuming(trigger):
        wait_for(lambda: ids(function) == ["1", "2"])
    (kept,) = keeper.asked
    assert kept.headers["ce-knativeerrorcode"] == str(status)
    assert "ce-knativeerrordata" not in kept.headers


def test_a_function_that_is_not_there_is_tried_again(broker: Process, keeper: Provider, trigger: Trigger) -> None:
    send("1")
    with consuming(replace(trigger, service=str(servers.free_port()))):
        wait_for(lambda: keeper.asked)
    assert keeper.asked[0].headers["ce-knativeerrorcode"] == "NewConnectionError"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(after=threading.Event()), "ReadTimeoutError"),
        (Answer(trickles="head"), "ReadTimeoutError"),
        (Answer(trickles="body"), "ReadTimeoutError"),
        (Answer(drops=True), "ProtocolError"),
    ],
    ids=["hangs", "is slow with the head", "is slow with the body", "closes the connection"],
)
@pytest.mark.usefixtures("broker")
def test_a_function_that_gives_no_complete_answer_is_tried_again(
    function: Provider, keeper: Provider, trigger: Trigger, answer: Answer, error: str
) -> None:
    function.answer = failing("1", answer=answer)
    send("1", user="one")
    send("2", user="another")
    with consuming(replace(trigger, timeout_seconds=0.2)):
        wait_for(lambda: keeper.asked)
    assert ids(function).count("1") == 1 + trigger.retries
    assert ids(function).count("2") == 1
    assert [(kept.headers["ce-id"], kept.headers["ce-knativeerrorcode"]) for kept in keeper.asked] == [("1", error)]
    if answer.after:
        answer.after.set()


@pytest.mark.parametrize("status", [503, 400])
def test_while_dead_letters_cannot_be_kept_the_event_is_tried_again(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger, status: int
) -> None:
    function.answer = failing("1", answer=Answer(status))
    keeper.answer = failing("1")
    send("1", "2")
    with consuming(trigger):
        wait_for(lambda: len(keeper.asked) == 3)
        assert "2" not in ids(function)
        function.answer = failing()
        wait_for(lambda: ids(function)[-2:] == ["1", "2"])


def test_a_dead_letter_is_kept_as_soon_as_it_can_be(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger
) -> None:
    function.answer = failing("1")
    keeper.answers = [Answer(503), Answer(drops=True)]
    send("1", "2")
    with consuming(trigger):
        wait_for(lambda: ids(function)[-1:] == ["2"])
    assert ids(keeper) == ["1"] * 3


@pytest.mark.parametrize(
    ("status", "value", "seconds"),
    [
        (429, "7", 7),
        (503, "7", 7),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT", delivery.MAX_BACKOFF_SECONDS),
        (503, "Fri, 31 Dec 1999 23:59:59 GMT", 0),
        (503, "100000", delivery.MAX_BACKOFF_SECONDS),
        (503, "9" * 5000, 0),
        (503, "-7", 0),
        (503, "soon", 0),
        (503, "", 0),
        (500, "7", 0),
    ],
)
def test_a_function_says_how_long_it_wants_to_be_left_alone(
    function: Provider, status: int, value: str, seconds: float
) -> None:
    function.answers = [Answer(status, headers={"Retry-After": value})]
    failure = delivery.post(function.url, "any", {"id": "1"}, b"{}", 2)
    assert failure
    assert failure.retry_after == seconds


def test_a_function_is_left_alone_for_as_long_as_it_asks(broker: Process, function: Provider, trigger: Trigger) -> None:
    others = [f"other-{number}" for number in range(20)]
    function.answers = [Answer(503, headers={"Retry-After": "60"})]
    send("1", user="one")
    with consuming(trigger):
        wait_for(lambda: function.asked)
        for id_ in others:
            send(id_, user="another")
        wait_for(lambda: ids(function) == ["1", *others])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("ce_id", b"\xff")],
        [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/tests")],
        [("ce_specversion", b"1.0"), ("ce_type", b"wanted"), ("ce_source", b"/tests")],
        [("ce_specversion", b"1.0"), ("ce_id", b""), ("ce_source", b"/tests"), ("ce_type", b"wanted")],
    ],
)
@pytest.mark.parametrize("value", [None, b"\xff\x00"])
@pytest.mark.usefixtures("broker")
def test_a_record_that_is_no_event_is_passed_over(
    function: Provider, keeper: Provider, trigger: Trigger, headers: list[tuple[str, bytes]], value: bytes | None
) -> None:
    produce(headers, value)
    send("1")
    with consuming(trigger):
        wait_for(lambda: function.asked)
    assert ids(function) == ["1"]
    assert keeper.asked == []


# CloudEvents 1.0.2, sections 3 and 3.1; RFC 3339, 5.6; RFC 3986, 4.1.
_NO_CLOUDEVENTS = {
    "specversion": ["0.2", "2.0", "1", "1.0 ", "1.0\n"],
    "time": [
        *("", "soon", "2026-01-02", "2026-01-02T03:04:05", "2026-01-02T03:04Z", "20260102T030405Z", "1767323045"),
        *("2026-02-30T03:04:05Z", "2026-01-02T24:00:00Z", "2026-01-02T03:04:05+0900", "2026-01-02T03:04:05,5Z"),
        *("2026-01-02T03:04:05+24:00", "2026-01-02 03:04:05Z\n", "２０２６-01-02T03:04:05Z"),
    ],
    "source": ["", "/with space", "/%zz", "/<tests>", "1:2", "/tests#a#b", "/tests\n", "\\tests", "/[tests]"],
    "dataschema": ["", "/with space"],
    "UPPER": ["a"],
    "with-hyphen": ["a"],
    "with_underscore": ["a"],
    "": ["a"],
}


def test_an_event_whose_attributes_break_the_specification_is_passed_over(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger
) -> None:
    for name, values in _NO_CLOUDEVENTS.items():
        for value in values:
            produce(kafka.to_headers(EVENT | {"id": f"{name} {value!r}", name: value}))
    send("1")
    with consuming(trigger):
        wait_for(lambda: "1" in ids(function))
    assert ids(function) == ["1"]
    assert keeper.asked == []


def test_an_event_whose_attributes_keep_to_the_specification_is_delivered(
    broker: Process, function: Provider, trigger: Trigger
) -> None:
    rightly = {
        "time": [
            *("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678901234+09:00", "2024-02-29t03:04:05z"),
            "2026-01-02T03:04:05.5-00:00",
        ],
        "source": [
            *("tests", "//example.com", "https://[::1]:8080/a?b=/?#c?", "urn:example:a123,z456"),
            *("mailto:kim@example.com", "#fragment", "?query", "./a:b", "/%ED%95%9C"),
        ],
        "0extension9": [""],
    }
    sent = [(name, value) for name, values in rightly.items() for value in values]
    for number, (name, value) in enumerate(sent):
        produce(kafka.to_headers(EVENT | {"id": f"{number}", name: value}))
    with consuming(trigger):
        wait_for(lambda: len(function.asked) == len(sent))
    assert ids(function) == [f"{number}" for number in range(len(sent))]


def test_an_event_without_data_is_one(broker: Process, function: Provider, trigger: Trigger) -> None:
    produce(kafka.to_headers(EVENT))
    with consuming(trigger):
        wait_for(lambda: function.asked)
    assert function.asked[0].body == ""


def test_a_settled_event_is_not_delivered_again(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger
) -> None:
    function.answer = failing("2", answer=Answer(400))
    send("1", "2")
    with consuming(trigger):
        wait_for(lambda: keeper.asked)
    send("3")
    with consuming(trigger):
        wait_for(lambda: "3" in ids(function))
    assert ids(function) == ["1", "2", "3"]
    assert ids(keeper) == ["2"]


def test_an_upgrade_goes_on_where_the_release_before_has_stopped_and_a_roll_back_too(
    broker: Process, function: Provider, trigger: Trigger
) -> None:
    """That release had a consumer for each trigger, in the same group."""
    _, group = kafka.consumer_groups(trigger.name, ensure_topic())
    place = TopicPartition(kafka.EVENTS, 0)
    send("1")
    send("2")
    with kafka.connected(KafkaConsumer, group_id=group, enable_auto_commit=False) as before:
        before.assign([place])
        before.commit({place: OffsetAndMetadata(1, "", -1)})
    with consuming(trigger):
        wait_for(lambda: ids(function) == ["2"])
    with kafka.connected(KafkaConsumer, group_id=group, enable_auto_commit=False) as after:
        assert after.committed(place) == 2


def test_a_dispatcher_that_is_told_to_stop_delivers_later_what_it_could_not(
    broker: Process, function: Provider, supervisor: Supervisor
) -> None:
    function.answer = failing("2")
    send_all([("1", "one"), ("2", "another"), ("3", "one")], "com.aegis.user.phone_code_requested.v1", 0)
    with dispatching(supervisor, function):
        wait_for(lambda: {"1", "2", "3"} <= set(ids(function)))
    function.answer = failing()
    function.asked.clear()
    with dispatching(supervisor, function):
        wait_for(lambda: sorted(ids(function)) == ["2", "3"])  # 3 was settled, but 2 before it was not


def test_a_delivery_under_way_when_the_dispatcher_stops_is_not_made_again(
    broker: Process, function: Provider, supervisor: Supervisor
) -> None:
    answered = threading.Event()
    function.answers = [Answer(204, after=answered)]
    send("1", type_="com.aegis.user.phone_code_requested.v1")
    with dispatching(supervisor, function) as process:
        wait_for(lambda: function.asked)
        assert process.popen
        process.popen.send_signal(signal.SIGTERM)
        answered.set()
    send("2", type_="com.aegis.user.phone_code_requested.v1")
    with dispatching(supervisor, function):
        wait_for(lambda: "2" in ids(function))
    assert ids(function) == ["1", "2"]


def test_a_function_that_hangs_does_not_keep_the_dispatcher_from_stopping(
    broker: Process, function: Provider, supervisor: Supervisor
) -> None:
    answered = threading.Event()
    function.answer = failing("1", answer=Answer(after=answered))
    send("1", type_="com.aegis.user.phone_code_requested.v1")
    with dispatching(supervisor, function):
        wait_for(lambda: function.asked)
    answered.set()
    function.answer = failing()
    with dispatching(supervisor, function):
        wait_for(lambda: len(function.asked) == 2)
    assert ids(function) == ["1", "1"]


def test_a_dispatcher_stops_also_while_the_broker_is_away(
    broker: Process, function: Provider, supervisor: Supervisor
) -> None:
    send("1", type_="com.aegis.user.phone_code_requested.v1")
    with dispatching(supervisor, function):
        wait_for(lambda: function.asked)
        kill(broker)


@pytest.mark.parametrize("client", [KafkaAdminClient, KafkaConsumer])
def test_waiting_for_a_broker_leaves_no_threads_behind(broker: Process, client: type) -> None:
    kill(broker)
    before = threading.active_count()
    with pytest.raises(KafkaTimeoutError), kafka.connected(client):
        pass
    assert threading.active_count() == before


def test_a_topic_that_has_come_back_with_fewer_partitions_is_another_one(broker: Process, trigger: Trigger) -> None:
    """The embedded broker makes such a one for whoever asks for it first; `run` then begins anew."""
    before = Deliveries(trigger, URL)
    before.positions[TopicPartition(kafka.EVENTS, kafka.PARTITIONS)] = 1
    with dispatcher._clients() as (admin, consumer), pytest.raises(UnknownTopicOrPartitionError):
        dispatcher.Groups(admin, consumer, "", [before])


def test_a_dispatcher_killed_in_the_middle_loses_nothing(
    broker: Process, function: Provider, supervisor: Supervisor
) -> None:
    events = [(f"{number:04}", f"user-{number % 30}") for number in range(600)]
    send_all(events, "com.aegis.user.phone_code_requested.v1", None)
    function.answer = failing("0000", "0100")
    with dispatching(supervisor, function) as process:
        for enough in (100, 300, 500):
            wait_for(lambda enough=enough: len(set(ids(function))) >= enough)  # type: ignore[misc]
            kill(process)
            start_again(supervisor, process)
        function.answer = failing()
        wait_for(lambda: set(ids(function)) == {id_ for id_, _ in events})
    for user in {user for _, user in events}:
        sent = [id_ for id_, of in events if of == user]
        arrived = [id_ for id_ in ids(function) if id_ in sent]
        assert list(dict.fromkeys(arrived)) == sent


@pytest.mark.parametrize(("policy", "waits"), [("exponential", [0.3, 0.6, 1.2, 2.4]), ("linear", [0.3, 0.6, 0.9, 1.2])])
def test_back_off_grows_as_stated(policy: str, waits: list[float]) -> None:
    trigger = replace(TRIGGER, backoff_policy=policy, backoff_seconds=0.3)
    assert [delivery.backoff(trigger, attempt) for attempt in range(4)] == pytest.approx(waits)
    assert delivery.backoff(trigger, 10**6) == delivery.MAX_BACKOFF_SECONDS


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
    assert replace(TRIGGER, filters=filters).matches({"type": "a.b"}) is passes


def test_an_unknown_filter_dialect_is_an_error_and_not_a_match() -> None:
    with pytest.raises(ValueError, match="cesql"):
        replace(TRIGGER, filters=({"cesql": "true"},)).matches({"type": "a.b"})


def test_every_trigger_waits_at_least_a_minute_before_it_gives_up() -> None:
    for trigger in triggers():
        assert sum(delivery.backoff(trigger, attempt) for attempt in range(trigger.retries)) > 60


def test_a_broker_that_comes_back_is_read_on_whether_it_has_forgotten_or_not(
    broker: Process,
    function: Provider,
    trigger: Trigger,
    supervisor: Supervisor,
) -> None:
    with consuming(trigger):
        send("1")
        wait_for(lambda: ids(function) == ["1"])
        for id_ in ("2", "3"):
            kill(broker)
            start_again(supervisor, broker)
            ensure_topic()
            send(id_)
            wait_for(lambda id_=id_: id_ in ids(function))  # type: ignore[misc]


def shown(name: str, **labels: str) -> float:
    """What this process would show to Prometheus of the trigger that is tested."""
    collectors = (DELIVERIES, DELAYS, PASSED_OVER, DeliveriesCollector())
    samples = [sample for one in collectors for family in one.collect() for sample in family.samples]
    wanted = {"service": "user-service", **labels}
    return sum(one.value for one in samples if one.name == name and wanted.items() <= one.labels.items())


def test_deliveries_are_counted_by_what_came_of_them(
    broker: Process, function: Provider, keeper: Provider, trigger: Trigger
) -> None:
    def tries() -> list[float]:
        return [shown("event_deliveries_total", trigger="counted", outcome=outcome) for outcome in OUTCOMES]

    function.answers = [Answer(503), Answer(204), Answer(400), Answer(400)]
    keeper.answers = [Answer(503)]
    send("1", "2", time=(datetime.now(UTC) - timedelta(minutes=2)).isoformat())
    with consuming(replace(trigger, name="counted", retries=1)):
        wait_for(lambda: ids(keeper) == ["2", "2"] and shown("event_deliveries_waiting", trigger="counted") == 0)
    assert dict(zip(OUTCOMES, tries(), strict=True)) == dict.fromkeys(OUTCOMES, 1)
    assert shown("event_delivery_delay_seconds_sum", trigger="counted") > 120


def test_what_waits_and_for_how_long_is_shown(broker: Process, function: Provider, trigger: Trigger) -> None:
    function.answer = failing("1")
    ago = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    with consuming(replace(trigger, name="waiting", retries=10**6)):
        send("1", "2", time=ago)
        send("3", user="another", time=datetime.now(UTC).isoformat())
        wait_for(lambda: "3" in ids(function) and shown("event_deliveries_waiting", trigger="waiting") == 2)
        assert shown("event_delivery_lag_seconds", trigger="waiting") > 120
        function.answer = failing()
        wait_for(lambda: shown("event_deliveries_waiting", trigger="waiting") == 0)
        assert shown("event_delivery_lag_seconds", trigger="waiting") == 0


def test_the_lag_grows_while_an_event_is_not_taken_and_falls_when_it_is(
    broker: Process, function: Provider, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_lag, "triggers", lambda: (trigger,))

    def lag() -> list[int]:
        return [position.lag for position in consumer_lag.read()]

    trigger = replace(trigger, retries=10**6)
    send("1", "2")
    with consuming(trigger):
        wait_for(lambda: lag() == [0])
        function.answer = failing("3")
        send("3", user="one")
        wait_for(lambda: lag() == [1])
        send("4", user="another")
        wait_for(lambda: "4" in ids(function))
        assert lag() == [2]
    send("5")
    assert lag() == [3]
    function.answer = failing()
    with consuming(trigger):
        wait_for(lambda: lag() == [0])


def test_a_dispatcher_is_alive_as_long_as_each_of_its_triggers_is_read(
    broker: Process, function: Provider, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "STUCK_SECONDS", 3.0)
    stuck, heart, stopped = threading.Event(), Heart(), threading.Event()
    take = Deliveries.take

    def stand_still(each: Deliveries, partition: TopicPartition, events: Sequence[Any]) -> None:
        stuck.wait()
        take(each, partition, events)

    thread = threading.Thread(target=dispatcher.run, args=(URL, [trigger], stopped, heart))
    thread.start()
    try:
        send("1")
        wait_for(lambda: function.asked)
        assert heart.is_alive()
        monkeypatch.setattr(Deliveries, "take", stand_still)
        send("2")
        wait_for(lambda: not heart.is_alive())
        stuck.set()
        wait_for(heart.is_alive)
        kill(broker)
        beaten_at = heart._beaten_at
        wait_for(lambda: heart._beaten_at > beaten_at)
    finally:
        stuck.set()
        stopped.set()
        thread.join()
