"""The trigger dispatcher: delivers events from Kafka to the functions whose Trigger matches.

    PORT=8080 FUNCTION_URL=http://{service}.aegis-user-service.svc.cluster.local python -m shared.events.dispatcher

It replaces Knative's Kafka broker in clusters without Knative Eventing and on one machine: it sends binary CloudEvents
over HTTP, retries with back-off, then sends the event to the trigger's dead-letter service. It differs in two ways:

- Knative keeps the order of a partition. Here a failing event delays only the events of its key (user).
- Knative drops an event if the dead-letter service does not accept it. Here it is retried until one of the two does.

Like Knative, it logs and skips a record that is not a CloudEvent 1.0, so that it does not block the records behind it.

One consumer reads each record once for all triggers. Each trigger has its own consumer group, the same in all releases,
and commits an offset when the event there and all earlier ones are settled. So every event is delivered at least once,
whatever fails, and an upgrade or a rollback continues where the other release stopped.
"""

import contextlib
import logging
import logging.config
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, NoError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata
from prometheus_client import REGISTRY

from shared.events import kafka
from shared.events.deliveries import DELAYS, DELIVERIES, PASSED_OVER, Deliveries, DeliveriesCollector, stop
from shared.runtime import logs, probes
from shared.runtime.manifests import Trigger, triggers
from shared.runtime.metrics import SERVICE
from shared.runtime.probes import Heart
from shared.runtime.settings import InvalidSettings, load, settings
from shared.runtime.stopping import stopped_by

PAUSE_SECONDS = 1.0
TOPIC_SECONDS = 5.0
"""How often to check whether the broker has lost the topic; a restarted broker is also checked on reconnecting."""
COMMIT_SECONDS = 0.5
"""How often offsets are committed. After a kill, the events of this time are delivered again."""
POLL_SECONDS = 0.05
IDLE_SECONDS = 1.0
"""The longest pause between polls of a broker that must be polled; it grows while no events arrive."""
MAX_WAITING = 1000
"""Stop reading for a trigger that has this many events in memory. One batch can exceed it."""
MAX_BATCH = 500
MAX_FETCH_BYTES = 2**20

log = logging.getLogger("dispatcher")


def run(function_url: str, triggers: Sequence[Trigger], stopped: threading.Event, heart: Heart) -> None:
    """Dispatch until stopped, and survive every failure of the broker.

    If the broker has lost its events, read the new topic from the beginning.
    """
    topic_id, deliveries = "", list[Deliveries]()
    while not stopped.is_set():
        heart.beat()
        try:
            with _clients() as (admin, consumer):
                if (found := kafka.ensure_topic(admin)) != topic_id:
                    stop(deliveries)
                    topic_id, deliveries = found, [Deliveries(trigger, function_url) for trigger in triggers]
                    log.info("dispatching", extra={"triggers": [trigger.name for trigger in triggers]})
                groups = Groups(admin, consumer, topic_id, deliveries)
                _dispatch(Reader(consumer, deliveries), groups, stopped, heart)
                if stopped.is_set():
                    stop(deliveries)
                    groups.commit()
        except (KafkaError, OSError) as error:
            log.warning("waiting for the broker", extra={"error": type(error).__name__})
            stopped.wait(PAUSE_SECONDS)
        except Exception:
            log.exception("unexpected error; trying again")
            stopped.wait(PAUSE_SECONDS)
    stop(deliveries)


@contextlib.contextmanager
def _clients() -> Iterator[tuple[KafkaAdminClient, KafkaConsumer]]:
    consumer = kafka.connected(
        KafkaConsumer,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=_fetch_milliseconds(),
        fetch_max_bytes=MAX_FETCH_BYTES,
        max_poll_records=MAX_BATCH,
        metrics_enabled=False,
    )
    with kafka.connected(KafkaAdminClient) as admin, consumer as connected:
        yield admin, connected


def _fetch_milliseconds() -> int:
    return settings().kafka_fetch_milliseconds or round(POLL_SECONDS * 1000)


def _dispatch(reader: "Reader", groups: "Groups", stopped: threading.Event, heart: Heart) -> None:
    """Dispatch until stopped or until the broker has another topic."""
    commit_at = check_at = time.monotonic() + COMMIT_SECONDS
    while not stopped.is_set():
        heart.beat()
        reader.read(stopped)
        if time.monotonic() >= commit_at:
            groups.commit()
            commit_at = time.monotonic() + COMMIT_SECONDS
        if time.monotonic() >= check_at:
            if not groups.are_of_this_topic():
                return
            check_at = time.monotonic() + TOPIC_SECONDS


class Groups:
    """The consumer groups of the triggers, and the offsets that they have committed."""

    def __init__(
        self, admin: KafkaAdminClient, consumer: KafkaConsumer, topic_id: str, deliveries: Sequence[Deliveries]
    ) -> None:
        partitions = [TopicPartition(kafka.EVENTS, number) for number in consumer.partitions_for_topic(kafka.EVENTS)]
        # An embedded broker that has lost the topic may create one with fewer partitions by itself.
        if not partitions or not all(each.positions.keys() <= set(partitions) for each in deliveries):
            raise UnknownTopicOrPartitionError(kafka.EVENTS)
        # Assigned, not subscribed: the only dispatcher owns all partitions and need not join a group.
        consumer.assign(partitions)
        self._admin, self._topic_id = admin, topic_id
        self._deliveries = {kafka.consumer_groups(each.trigger.name, topic_id)[1]: each for each in deliveries}
        known = admin.list_group_offsets(dict.fromkeys(self._deliveries, partitions))
        self._committed = {
            group: {partition: at.offset for partition, at in known[group].items() if at.offset >= 0}
            for group in self._deliveries
        }
        for group, each in self._deliveries.items():
            each.positions = dict.fromkeys(partitions, 0) | self._committed[group] | each.positions

    def are_of_this_topic(self) -> bool:
        return kafka.ensure_topic(self._admin) == self._topic_id

    def commit(self) -> None:
        for group, each in self._deliveries.items():
            committed = self._committed[group]
            changed = {place: offset for place, offset in each.settled().items() if committed.get(place, 0) != offset}
            if changed:
                request = {place: OffsetAndMetadata(offset, "", -1) for place, offset in changed.items()}
                for error in self._admin.alter_group_offsets(group, request).values():
                    if error is not NoError:
                        raise error
                committed.update(changed)


class Reader:
    """Reads records for the triggers that have room for them."""

    def __init__(self, consumer: KafkaConsumer, deliveries: Sequence[Deliveries]) -> None:
        self._consumer = consumer
        self._deliveries = deliveries
        self._places: dict[TopicPartition, int] = {}
        """The next offset to read."""
        self._read_at = time.monotonic()

    def read(self, stopped: threading.Event) -> None:
        """Read the available records, or wait briefly for some."""
        ready = [each for each in self._deliveries if each.waiting() < MAX_WAITING]
        if not ready:
            stopped.wait(POLL_SECONDS)
            return
        self._seek(ready)
        batches = self._consumer.poll(timeout_ms=_fetch_milliseconds())
        for partition, records in batches.items():
            self._hand_over(ready, partition, records)
        now = time.monotonic()
        if batches:
            self._read_at = now
        elif not settings().kafka_fetch_milliseconds:
            stopped.wait(max(0.0, min(IDLE_SECONDS, (now - self._read_at) / 20) - POLL_SECONDS))

    def _seek(self, ready: Sequence[Deliveries]) -> None:
        """Seek to the position of the triggers that have room.

        A trigger that had no room is behind the others. Each side gets half of every second, so that neither starves.
        """
        choose = max if time.monotonic() % 1 < 0.5 else min
        for partition in self._consumer.assignment():
            place = choose(each.positions[partition] for each in ready)
            if self._places.get(partition) != place:
                self._consumer.seek(partition, place)
                self._places[partition] = place

    def _hand_over(self, ready: Sequence[Deliveries], partition: TopicPartition, records: Sequence[Any]) -> None:
        start, first = self._places[partition], records[0].offset
        self._places[partition] = records[-1].offset + 1
        events = [(record, kafka.to_attributes(record.headers)) for record in records]
        for record, attributes in events:
            if not attributes:
                PASSED_OVER.labels(SERVICE).inc()
                log.error(
                    "not a CloudEvent; passed over", extra={"partition": record.partition, "offset": record.offset}
                )
        for each in ready:
            if start <= each.positions[partition]:
                if first < start:  # the broker has lost these records, and the consumer started again
                    each.positions[partition] = first
                each.take(partition, events)


def main() -> None:
    try:
        logging.config.dictConfig(logs.configuration(load(os.environ, ["kafka", "deliveries"])))
        function_url = os.environ["FUNCTION_URL"]
    except InvalidSettings as error:
        sys.exit("\n".join(["the dispatcher cannot start with these settings:", *error.problems]))
    except KeyError:
        sys.exit(
            "the dispatcher cannot start: FUNCTION_URL is not set, such as http://{service}.NAMESPACE.svc.cluster.local"
        )
    stopped = stopped_by(signal.SIGTERM)
    PASSED_OVER.labels(SERVICE)
    for collector in (DELIVERIES, DELAYS, PASSED_OVER, DeliveriesCollector()):
        REGISTRY.register(collector)
    probes.serve(heart := Heart())
    run(function_url, triggers(), stopped, heart)


if __name__ == "__main__":
    main()
