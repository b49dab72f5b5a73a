"""The events of a trigger on their way to its function: in order for each user, side by side for different ones."""

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kafka import TopicPartition
from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.events import cloud_events, kafka
from shared.events.delivery import MAX_BACKOFF_SECONDS, backoff, post
from shared.runtime.manifests import Trigger
from shared.runtime.metrics import BUCKETS, SERVICE

STOP_SECONDS = 5.0
"""What a delivery under way has when the dispatcher stops; with the broker's time-outs well within a pod's 30 s."""
IN_FLIGHT = kafka.PARTITIONS
"""Deliveries of one trigger at once: as many as Knative makes in order, so that one manifest suits both."""
LINGER_SECONDS = 10.0
"""How long a thread waits for another delivery before it ends."""

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
    its key, and none of the threads. These are started as there is work for them.
    """

    def __init__(self, trigger: Trigger, function_url: str) -> None:
        self.trigger = trigger
        self.positions: dict[TopicPartition, int] = {}
        """Where to read on."""
        self._function_url = function_url.format(service=trigger.service)
        self._dead_letter_url = function_url.format(service=trigger.dead_letter_service)
        self._queues: dict[bytes | int, deque[Delivery]] = {}
        self._due: list[tuple[float, int, bytes | int]] = []
        """A heap of the keys whose first event is not under way: when it may be, and in which order they came."""
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        for outcome in OUTCOMES:
            DELIVERIES.labels(SERVICE, trigger.name, outcome)
        _under_way[trigger.name] = self
        self._threads: set[threading.Thread] = set()
        self._idle = 0

    def take(self, partition: TopicPartition, events: Sequence[tuple[Any, dict[str, str]]]) -> None:
        """Takes over the next records of a partition, with the attributes of the event in each, if it is one."""
        with self._changed:
            for record, attributes in events:
                if record.offset < self.positions[partition]:
                    continue
                if attributes and self.trigger.matches(attributes):
                    key = partition.partition if record.key is None else record.key
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

    def settled(self) -> dict[TopicPartition, int]:
        """For each partition the offset before which all events are settled."""
        with self._changed:
            offsets = dict(self.positions)
            for delivery in itertools.chain.from_iterable(self._queues.values()):
                offsets[delivery.partition] = min(offsets[delivery.partition], delivery.offset)
        return offsets

    def stop(self) -> set[threading.Thread]:
        """Starts no more delivery. Returns the threads with those under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            return set(self._threads)

    def _schedule(self, key: bytes | int, seconds: float = 0.0) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), key))
        self._changed.notify()
        if len(self._due) > self._idle and len(self._threads) < IN_FLIGHT and not self._stopped:
            # A daemon: a function that hangs does not keep the process from ending.
            thread = threading.Thread(target=self._work, daemon=True)
            self._threads.add(thread)
            thread.start()

    def _next(self) -> tuple[bytes | int, Delivery] | None:
        """What may be delivered next, with its key, as soon as there is something.

        None when stopped, or when there is nothing for a while: the thread is to end then.
        """
        with self._changed:
            notified = True
            while not self._stopped and (self._due or notified):
                seconds = self._due[0][0] - time.monotonic() if self._due else LINGER_SECONDS
                if seconds <= 0:
                    key = heapq.heappop(self._due)[2]
                    return key, self._queues[key][0]
                self._idle += 1
                notified = self._changed.wait(seconds)
                self._idle -= 1
            self._threads.discard(threading.current_thread())
        return None

    def _work(self) -> None:
        while due := self._next():
            key, delivery = due
            try:
                seconds = self._try(delivery)
            except Exception:
                log.exception("unexpected error; trying again", extra={"trigger": self.trigger.name})
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
        trigger = self.trigger
        failure = post(self._function_url, trigger.service, delivery.attributes, delivery.data, trigger.timeout_seconds)
        if failure is None:
            self._count_try("delivered")
            if (age := delivery.age()) is not None:
                DELAYS.labels(SERVICE, self.trigger.name).observe(age)
            return None
        is_last = delivery.attempt >= self.trigger.retries or not failure.is_retried
        fields = {
            "trigger": self.trigger.name,
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
        seconds = max(failure.retry_after, backoff(self.trigger, delivery.attempt))
        delivery.attempt += 1
        return seconds

    def _count_try(self, outcome: str) -> None:
        DELIVERIES.labels(SERVICE, self.trigger.name, outcome).inc()


def stop(deliveries: Iterable[Deliveries]) -> None:
    """Starts no more delivery, and waits a while for those under way."""
    threads = set[threading.Thread]().union(*(each.stop() for each in deliveries))
    deadline = time.monotonic() + STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


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
