"""The trigger dispatcher: delivers events from Kafka to the functions whose Trigger matches.

    PORT=8080 FUNCTION_URL=http://{service}.aegis-user-service.svc.cluster.local python -m shared.events.dispatcher

It does what Knative's Kafka broker does, for clusters without Knative Eventing and for one machine: binary
CloudEvents over HTTP, retries with back-off, then the trigger's dead-letter service. In two things it differs:

- Knative keeps the order of a partition. Here an event that fails holds up those of its own key (user) alone.
- Knative drops an event that the dead-letter service does not take either. Here it is tried until one of them takes it.

As there, a record that is no CloudEvent of version 1.0 is logged and passed over: those behind it must not wait for it.

An offset is committed when its event and all before it are settled. So whatever dies, an event is delivered at least
once.
"""

import contextlib
import logging
import logging.config
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata
from prometheus_client import REGISTRY

from shared.events import kafka
from shared.events.deliveries import DELAYS, DELIVERIES, PASSED_OVER, Deliveries, DeliveriesCollector
from shared.runtime import logs, probes
from shared.runtime.manifests import Trigger, triggers
from shared.runtime.probes import Heart
from shared.runtime.settings import InvalidSettings, load, settings
from shared.runtime.stopping import stopped_by

CHECK_SECONDS = 1.0
COMMIT_SECONDS = 0.5
"""How old a settled event's offset may get before it is committed; so much is delivered again after a kill."""
POLL_SECONDS = 0.25
MAX_WAITING = 1000
"""Events of one trigger in memory before it reads no more; at most one batch is above."""
MAX_BATCH = 500
MAX_FETCH_BYTES = 2**20

log = logging.getLogger("dispatcher")


def run(function_url: str, stopped: threading.Event, heart: Heart) -> None:
    """Dispatches until stopped. A broker that has forgotten its events is read from the beginning."""
    topic_id = ""
    hearts: list[Heart] = []
    with contextlib.ExitStack() as consumers:
        while not stopped.is_set():
            try:
                with kafka.connected(KafkaAdminClient) as admin:
                    while not stopped.is_set():
                        known, topic_id = topic_id, kafka.ensure_topic(admin)
                        if topic_id != known:
                            consumers.close()
                            hearts = consumers.enter_context(consuming(function_url, topic_id))
                        if all(each.is_alive() for each in hearts):
                            heart.beat()
                        stopped.wait(CHECK_SECONDS)
            except (KafkaError, OSError) as error:
                heart.beat()
                log.warning("waiting for the broker", extra={"error": type(error).__name__})
                stopped.wait(CHECK_SECONDS)


@contextlib.contextmanager
def consuming(function_url: str, topic_id: str) -> Iterator[list[Heart]]:
    """Delivers the events of a topic for all triggers, each in a thread of its own, whose hearts it gives."""
    stopped = threading.Event()
    hearts = [Heart() for _ in triggers()]
    threads = [
        threading.Thread(target=consume, args=(trigger, function_url, topic_id, stopped, heart))
        for trigger, heart in zip(triggers(), hearts, strict=True)
    ]
    for thread in threads:
        thread.start()
    log.info("dispatching", extra={"triggers": [trigger.name for trigger in triggers()]})
    try:
        yield hearts
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def consume(trigger: Trigger, function_url: str, topic_id: str, stopped: threading.Event, heart: Heart) -> None:
    """Delivers all events to the function of a trigger until stopped, through every failure of the broker."""
    deliveries = Deliveries(trigger, function_url)
    _, group = kafka.consumer_groups(trigger.name, topic_id)
    while not stopped.is_set():
        heart.beat()
        try:
            with kafka.connected(
                KafkaConsumer,
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=settings().kafka_fetch_milliseconds,
                fetch_max_bytes=MAX_FETCH_BYTES,
                max_poll_records=MAX_BATCH,
            ) as consumer:
                _consume(consumer, deliveries, stopped, heart)
        except (KafkaError, OSError) as error:
            log.warning("waiting for the broker", extra={"error": type(error).__name__, "trigger": trigger.name})
            stopped.wait(CHECK_SECONDS)
        except Exception:
            log.exception("unexpected error; trying again", extra={"trigger": trigger.name})
            stopped.wait(CHECK_SECONDS)
    deliveries.stop()


def _consume(consumer: KafkaConsumer, deliveries: Deliveries, stopped: threading.Event, heart: Heart) -> None:
    partitions = [TopicPartition(kafka.EVENTS, number) for number in consumer.partitions_for_topic(kafka.EVENTS)]
    # One that an embedded broker, which had forgotten it, made by itself may have fewer than were read from.
    if not partitions or not deliveries.positions.keys() <= set(partitions):
        raise UnknownTopicOrPartitionError(kafka.EVENTS)
    # Assigned, not subscribed: one dispatcher owns all partitions, and starts without a group join.
    consumer.assign(partitions)
    for partition, position in deliveries.positions.items():
        consumer.seek(partition, position)

    committed: dict[TopicPartition, OffsetAndMetadata] = {}

    def note(offsets: dict[TopicPartition, OffsetAndMetadata], answer: Any) -> None:
        if not isinstance(answer, Exception):
            committed.update(offsets)

    commit_at = time.monotonic() + COMMIT_SECONDS
    while not stopped.is_set():
        heart.beat()
        if deliveries.waiting() < MAX_WAITING:
            for records in consumer.poll(timeout_ms=int(POLL_SECONDS * 1000)).values():
                deliveries.take(records)
        else:
            stopped.wait(POLL_SECONDS)
        if time.monotonic() >= commit_at:
            offsets = deliveries.settled()
            changed = {partition: offset for partition, offset in offsets.items() if committed.get(partition) != offset}
            if changed:
                consumer.commit_async(changed, note)
            commit_at = time.monotonic() + COMMIT_SECONDS
    deliveries.stop()
    consumer.commit(deliveries.settled())


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
    for collector in (DELIVERIES, DELAYS, PASSED_OVER, DeliveriesCollector()):
        REGISTRY.register(collector)
    probes.serve(heart := Heart())
    run(function_url, stopped, heart)


if __name__ == "__main__":
    main()
