"""The trigger dispatcher: delivers events from Kafka to the functions whose Trigger matches.

    PORT=8080 FUNCTION_URL=http://{service}.aegis-user-service.svc.cluster.local python -m knative.dispatcher

It does what Knative's Kafka broker does, for clusters without Knative Eventing and for one machine: binary
CloudEvents over HTTP, retries with back-off, then the trigger's dead-letter service. In two things it differs:

- Knative keeps the order of a partition. Here an event that fails holds up those of its own key (user) alone.
- Knative drops an event that the dead-letter service does not take either. Here it is tried until one of them takes it.

As there, a record that is no CloudEvent of version 1.0 is logged and passed over: those behind it must not wait for it.

An offset is committed when its event and all before it are settled. So whatever dies, an event is delivered at least
once.
"""

import base64
import contextlib
import heapq
import itertools
import logging
import logging.config
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import urllib3
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata
from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared import cloud_events, kafka, logs, probes
from shared.deliveries import authorization
from shared.manifests import Trigger, triggers
from shared.metrics import BUCKETS, SERVICE
from shared.probes import Heart
from shared.providers import pools
from shared.settings import InvalidSettings, load, settings
from shared.stopping import stopped_by

CHECK_SECONDS = 1.0
COMMIT_SECONDS = 0.5
"""How old a settled event's offset may get before it is committed; so much is delivered again after a kill."""
POLL_SECONDS = 0.25
STOP_SECONDS = 5.0
"""What a delivery under way has when the dispatcher stops; with the broker's time-outs well within a pod's 30 s."""
MAX_BACKOFF_SECONDS = 60.0

IN_FLIGHT = kafka.PARTITIONS
"""Deliveries of one trigger at once: as many as Knative makes in order, so that one manifest suits both."""
MAX_WAITING = 1000
"""Events of one trigger in memory before it reads no more; at most one batch is above."""
MAX_BATCH = 500
MAX_FETCH_BYTES = 2**20

# What Knative sends again, and 401: while a key is replaced, functions and dispatcher may have different ones. Any
# other answer from 300 on goes to the dead letters at once.
RETRIED_STATUSES = frozenset({401, 404, 408, 409, 429})
ASKING_TO_WAIT = frozenset({429, 503})
MAX_ERROR_BYTES = 1024

# CloudEvents HTTP binding 1.0.2, 3.1.3.2: everything else in a header value is percent-encoded.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')

OUTCOMES = ("delivered", "retried", "dead_lettered", "dead_letter_refused")
# Registered by `main` alone: all that `make up` starts are forks of a process that has imported this.
DELIVERIES = Counter("event_deliveries_total", "Tries to deliver.", ["service", "trigger", "outcome"], registry=None)
DELAYS = Histogram(
    "event_delivery_delay_seconds",
    "Age of an event when its function had it.",
    ["service", "trigger"],
    buckets=BUCKETS,
    registry=None,
)
PASSED_OVER = Counter("event_records_passed_over_total", "Records that are no event.", ["service"], registry=None)

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


def _consume(consumer: KafkaConsumer, deliveries: "Deliveries", stopped: threading.Event, heart: Heart) -> None:
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


@dataclass
class Delivery:
    """An event on its way to a function."""

    partition: TopicPartition
    offset: int
    attributes: dict[str, str]
    data: bytes
    attempt: int = 0

    def age(self) -> float | None:
        """Seconds since it was written; None where it does not say when that was."""
        written = cloud_events.parse_time(self.attributes.get("time"))
        return None if written is None else max(0.0, (datetime.now(UTC) - written).total_seconds())


class Deliveries:
    """The events of one trigger on their way: those of a key one after the other, those of different keys side by side.

    Records without a key are one after the other in their partition. An event that waits to be tried again holds up
    its key, and none of the threads.
    """

    def __init__(self, trigger: Trigger, function_url: str) -> None:
        self.positions: dict[TopicPartition, int] = {}
        """Where to read on."""
        self._trigger = trigger
        self._function_url = function_url.format(service=trigger.service)
        self._dead_letter_url = function_url.format(service=trigger.dead_letter_service)
        self._queues: dict[bytes | int, deque[Delivery]] = {}
        self._due: list[tuple[float, int, bytes | int]] = []
        """A heap of the keys whose first event is not under way: when it may be, and in which order they came."""
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        PASSED_OVER.labels(SERVICE)
        for outcome in OUTCOMES:
            DELIVERIES.labels(SERVICE, trigger.name, outcome)
        _under_way[trigger.name] = self
        # Daemons: a function that hangs does not keep the process from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(IN_FLIGHT)]
        for thread in self._threads:
            thread.start()

    def take(self, records: Sequence[Any]) -> None:
        """Takes over the next records of a partition."""
        with self._changed:
            for record in records:
                partition = TopicPartition(record.topic, record.partition)
                attributes = kafka.to_attributes(record.headers)
                if not attributes:
                    place = {"partition": record.partition, "offset": record.offset}
                    PASSED_OVER.labels(SERVICE).inc()
                    log.error("not a CloudEvent; passed over", extra={"trigger": self._trigger.name, **place})
                elif self._trigger.matches(attributes):
                    key = record.partition if record.key is None else record.key
                    queue = self._queues.setdefault(key, deque())
                    queue.append(Delivery(partition, record.offset, attributes, record.value or b""))
                    if len(queue) == 1:
                        self._schedule(key)
                self.positions[partition] = record.offset + 1

    def waiting(self) -> int:
        """How many events are in memory."""
        with self._changed:
            return sum(len(queue) for queue in self._queues.values())

    def lag(self) -> float:
        """Seconds since the oldest event in memory was written."""
        with self._changed:
            ages = [queue[0].age() for queue in self._queues.values()]
        return max((age for age in ages if age is not None), default=0.0)

    def settled(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """For each partition the offset before which all events are settled."""
        with self._changed:
            offsets = dict(self.positions)
            for delivery in itertools.chain.from_iterable(self._queues.values()):
                offsets[delivery.partition] = min(offsets[delivery.partition], delivery.offset)
        return {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}

    def stop(self) -> None:
        """Starts no more delivery, and waits a while for those under way."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _schedule(self, key: bytes | int, seconds: float = 0.0) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), key))
        self._changed.notify()

    def _next(self) -> tuple[bytes | int, Delivery] | None:
        """What may be delivered next, with its key, as soon as there is something; None when stopped."""
        with self._changed:
            while not self._stopped:
                seconds = self._due[0][0] - time.monotonic() if self._due else None
                if seconds is not None and seconds <= 0:
                    key = heapq.heappop(self._due)[2]
                    return key, self._queues[key][0]
                self._changed.wait(seconds)
        return None

    def _work(self) -> None:
        while due := self._next():
            key, delivery = due
            try:
                seconds = self._try(delivery)
            except Exception:
                log.exception("unexpected error; trying again", extra={"trigger": self._trigger.name})
                seconds = MAX_BACKOFF_SECONDS
            with self._changed:
                queue = self._queues[key]
                if seconds is None:
                    queue.popleft()
                if queue:
                    self._schedule(key, seconds or 0.0)
                else:
                    del self._queues[key]

    def _try(self, delivery: Delivery) -> float | None:
        """Delivers an event once. Returns None when it is settled, else the seconds to wait before the next try."""
        trigger = self._trigger
        failure = post(self._function_url, trigger.service, delivery.attributes, delivery.data, trigger.timeout_seconds)
        if failure is None:
            self._count_try("delivered")
            if (age := delivery.age()) is not None:
                DELAYS.labels(SERVICE, self._trigger.name).observe(age)
            return None
        is_last = delivery.attempt >= self._trigger.retries or not failure.is_retried
        fields = {
            "trigger": self._trigger.name,
            "event_id": delivery.attributes["id"],
            "request_id": delivery.attributes.get("requestid"),
            "attempt": delivery.attempt + 1,
        }
        log.warning("delivery failed", extra={**fields, "error": failure.error, "is_last": is_last})
        if is_last:
            dead_letter = delivery.attributes | failure.attributes(self._function_url)
            sink = trigger.dead_letter_service
            refused = post(self._dead_letter_url, sink, dead_letter, delivery.data, trigger.timeout_seconds)
            if refused is None:
                self._count_try("dead_lettered")
                return None
            log.error("dead letter not kept; trying again", extra={**fields, "error": refused.error})
        self._count_try("dead_letter_refused" if is_last else "retried")
        seconds = max(failure.retry_after, backoff(self._trigger, delivery.attempt))
        delivery.attempt += 1
        return seconds

    def _count_try(self, outcome: str) -> None:
        DELIVERIES.labels(SERVICE, self._trigger.name, outcome).inc()


_under_way: dict[str, Deliveries] = {}
"""By the names of their triggers."""


class DeliveriesCollector(Collector):
    """What is under way when Prometheus asks."""

    def collect(self) -> Iterator[Metric]:
        labels = ["service", "trigger"]
        waiting = GaugeMetricFamily("event_deliveries_waiting", "Events read and not yet delivered.", labels=labels)
        lag = GaugeMetricFamily("event_delivery_lag_seconds", "Age of the oldest of them.", labels=labels)
        for name, deliveries in list(_under_way.items()):
            waiting.add_metric([SERVICE, name], deliveries.waiting())
            lag.add_metric([SERVICE, name], deliveries.lag())
        yield from (waiting, lag)


class Failure(NamedTuple):
    """Why a delivery failed."""

    error: str
    """The status, or the kind of error when there was no answer."""
    body: bytes = b""
    """The beginning of the answer."""
    retry_after: float = 0.0
    """Seconds that the answer asks to wait."""

    @property
    def is_retried(self) -> bool:
        """Whether the same delivery may succeed later."""
        return not self.error.isdigit() or int(self.error) >= 500 or int(self.error) in RETRIED_STATUSES

    def attributes(self, function_url: str) -> dict[str, str]:
        """Knative's extension attributes of a dead letter, encoded as its Kafka broker does."""
        reason = {"knativeerrordest": function_url, "knativeerrorcode": self.error}
        return reason | ({"knativeerrordata": base64.b64encode(self.body).decode()} if self.body else {})


def post(url: str, service: str, attributes: dict[str, str], data: bytes, timeout_seconds: float) -> Failure | None:
    """POSTs an event to a service as a binary CloudEvent. Returns None when it was taken."""
    headers = {f"ce-{name}": quote(value, safe=_HEADER_SAFE) for name, value in attributes.items()}
    try:
        response = pools.request(
            "POST",
            url,
            body=data,
            headers={**headers, **authorization(service), "Content-Type": kafka.CONTENT_TYPE},
            timeout=urllib3.Timeout(total=timeout_seconds),
            redirect=False,
        )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return Failure(type(error).__name__)
    if response.status < 300:
        return None
    return Failure(str(response.status), response.data[:MAX_ERROR_BYTES], retry_after(response))


def retry_after(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds that a 429 or 503 asks to wait (RFC 9110, 10.2.3), as far as we do."""
    if response.status not in ASKING_TO_WAIT:
        return 0.0
    try:
        return min(MAX_BACKOFF_SECONDS, urllib3.Retry().get_retry_after(response) or 0.0)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def backoff(trigger: Trigger, attempt: int) -> float:
    """Seconds to wait after an attempt, counted from 0."""
    factor = 2.0 ** min(attempt, 64) if trigger.backoff_policy == "exponential" else attempt + 1
    return min(MAX_BACKOFF_SECONDS, trigger.backoff_seconds * factor)


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
