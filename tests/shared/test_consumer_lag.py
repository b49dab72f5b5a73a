"""The lag of consumer groups, as the relay shows it, for whichever of the two dispatchers delivers."""

import socket
from collections.abc import Sequence

import pytest
import yaml
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata

from knative.local.supervisor import Process, Supervisor
from shared.events import kafka
from shared.events.consumer_lag import LagCollector
from shared.runtime.manifests import NAMESPACE, triggers
from shared.runtime.settings import settings
from tests.conftest import ROOT, wait_for
from tests.servers import kill, start_again

TRIGGER = "send-email"
KNATIVES = "knative-trigger-aegis-user-service-send-email"


@pytest.fixture
def topic_id(own_kafka: Process) -> str:
    with kafka.connected(KafkaAdminClient) as admin:
        return kafka.ensure_topic(admin)


def send(count: int, partition: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=settings().kafka_bootstrap_servers, acks="all")
    for _ in range(count):
        # One after the other: the embedded broker counts only the first record of the last batch.
        producer.send(kafka.EVENTS, b"{}", partition=partition).get(timeout=10)
    producer.close()


def commit(group: str, *offsets: int) -> None:
    """As a consumer of the group does when it has settled what is before these, in the first partitions."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings().kafka_bootstrap_servers, group_id=group, enable_auto_commit=False
    )
    places = {TopicPartition(kafka.EVENTS, number): OffsetAndMetadata(at, "", -1) for number, at in enumerate(offsets)}
    consumer.assign(list(places))
    consumer.commit(places)
    consumer.close()


def shown(name: str = "kafka_consumergroup_lag") -> dict[tuple[str, str, str], float]:
    """What a scrape finds, by trigger, group and partition."""
    return {
        (sample.labels["trigger"], sample.labels["consumergroup"], sample.labels["partition"]): sample.value
        for family in LagCollector().collect()
        for sample in family.samples
        if sample.name == name
    }


def own_group(topic_id: str, trigger: str = TRIGGER) -> str:
    return f"knative-trigger-{trigger}-{topic_id}"


def groups_of(trigger: str) -> set[str]:
    return {group for of, group, _ in shown() if of == trigger}


@pytest.mark.parametrize("whose", ["our dispatcher's", "Knative's"])
def test_the_lag_of_a_group_is_what_it_has_not_settled_in_each_partition(topic_id: str, whose: str) -> None:
    group = KNATIVES if whose == "Knative's" else own_group(topic_id)
    send(5)
    send(2, partition=1)
    commit(group, 1, 2)
    assert shown() == {(TRIGGER, group, "0"): 4, (TRIGGER, group, "1"): 0}
    assert shown("kafka_consumergroup_current_offset") == {(TRIGGER, group, "0"): 1, (TRIGGER, group, "1"): 2}
    send(3)
    assert shown()[TRIGGER, group, "0"] == 7
    commit(group, 8, 2)
    assert shown()[TRIGGER, group, "0"] == 0


def test_after_a_change_to_knatives_broker_the_group_that_our_dispatcher_left_behind_is_not_shown(
    topic_id: str,
) -> None:
    commit(own_group(topic_id), 0)
    assert groups_of(TRIGGER) == {own_group(topic_id)}
    commit(KNATIVES, 0)
    assert groups_of(TRIGGER) == {KNATIVES}


def test_groups_of_earlier_topics_other_triggers_and_other_services_are_not_shown(topic_id: str) -> None:
    send(1)
    commit(own_group("0198c0de-0000-7000-8000-000000000001"), 0)
    commit(own_group(topic_id, "deleted"), 0)
    commit("knative-trigger-aegis-user-service-deleted", 0)
    commit("knative-trigger-elsewhere-send-email", 0)
    commit("reporting", 0)
    assert shown() == {}


def test_every_trigger_is_shown(topic_id: str) -> None:
    names: Sequence[str] = [trigger.name for trigger in triggers()]
    for name in names:
        commit(own_group(topic_id, name), 0)
    assert {trigger for trigger, _, _ in shown()} == set(names)


def test_a_partition_of_which_nothing_has_been_settled_is_not_shown(topic_id: str) -> None:
    commit(KNATIVES, 0)
    assert shown() == {(TRIGGER, KNATIVES, "0"): 0}


def test_a_group_that_is_ahead_of_a_topic_that_was_made_anew_has_no_lag(topic_id: str) -> None:
    commit(KNATIVES, 100)
    assert shown() == {(TRIGGER, KNATIVES, "0"): 0}


def test_before_there_is_a_topic_nothing_is_shown(own_kafka: Process) -> None:
    assert shown() == {}


def test_while_the_broker_is_away_nothing_is_shown(topic_id: str, own_kafka: Process, supervisor: Supervisor) -> None:
    commit(KNATIVES, 0)
    assert shown()
    kill(own_kafka)
    assert shown() == {}
    start_again(supervisor, own_kafka)
    with kafka.connected(KafkaAdminClient) as admin:
        kafka.ensure_topic(admin)
    commit(KNATIVES, 0)
    wait_for(shown)


def test_a_broker_that_says_nothing_keeps_no_scrape_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{silent.getsockname()[1]}")
        settings.cache_clear()
        assert shown() == {}
    monkeypatch.undo()
    settings.cache_clear()


def test_triggers_are_in_the_namespace_that_knative_names_the_groups_after() -> None:
    broker = ROOT / "knative" / "components" / "eventing" / "broker.yaml"
    namespaces = {one["metadata"]["namespace"] for one in yaml.safe_load_all(broker.read_text("utf-8"))}
    assert namespaces == {NAMESPACE}
