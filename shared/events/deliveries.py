"""Deliver the events of a trigger to its function: in order per user, in parallel for different users."""

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
"""How long to wait for deliveries in progress on stopping; with the broker's timeouts well within a pod's 30 s."""
IN_FLIGHT = kafka.PARTITIONS
"""Concurrent deliveries per trigger. Knative makes as many in order, so the same manifest suits both."""
LINGER_SECONDS = 10.0
"""How long an idle thread waits for work before it ends."""

OUTCOMES = ("delivered", "retried", "dead_lettered", "dead_letter_refused")
# Registered only by `main`, because all processes of `make up` are forks of one that has imported this module.
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
        """Return the seconds since the event occurred; None if it does not say when that was."""
        written = cloud_events.parse_time(self.attributes.get("time"))
        return None if written is None else max(0.0, (datetime.now(UTC) - written).total_seconds())


class Deliveries:
    """The undelivered events of one trigger. Events of a key are delivered in order, different keys in parallel.

    Records without a key are delivered in the order of their partition. An event that waits for a retry blocks its key
    but no thread. Threads are started on demand.
    """

    def __init__(self, trigger: Trigger, function_url: str) -> None:
        self.trigger = trigger
        self.positions: dict[TopicPartition, int] = {}
        """The next offset to read of each partition."""
        self._function_url = function_url.format(service=trigger.service)
        self._dead_letter_url = function_url.format(service=trigger.dead_letter_service)
        self._queues: dict[bytes | int, deque[Delivery]] = {}
        self._due: list[tuple[float, int, bytes | int]] = []
        """A heap of the keys whose first event is not in progress: when it is due, and a number for the order."""
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        for outcome in OUTCOMES:
            DELIVERIES.labels(SERVICE, trigger.name, outcome)
        _under_way[trigger.name] = self
        self._threads: set[threading.Thread] = set()
        self._idle = 0

    def take(self, partition: TopicPartition, events: Sequence[tuple[Any, dict[str, str]]]) -> None:
        """Take the next records of a partition, each with the attributes of its event, empty if it is none."""
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
        """Return for each partition the offset before which all events are settled."""
        with self._changed:
            offsets = dict(self.positions)
            for delivery in itertools.chain.from_iterable(self._queues.values()):
                offsets[delivery.partition] = min(offsets[delivery.partition], delivery.offset)
        return offsets

    def stop(self) -> set[threading.Thread]:
        """Start no more deliveries. Return the threads of those in progress."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            return set(self._threads)

    def _schedule(self, key: bytes | int, seconds: float = 0.0) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), key))
        self._changed.notify()
        if len(self._due) > self._idle and len(self._threads) < IN_FLIGHT and not self._stopped:
            # A daemon, so that a hanging function does not keep the process from ending.
            thread = threading.Thread(target=self._work, daemon=True)
            self._threads.add(thread)
            thread.start()

    def _next(self) -> tuple[bytes | int, Delivery] | None:
        """Wait for a delivery that is due, and return it with its key.

        Return None when stopped or after a time without work: the thread must end then.
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
        """Attempt a delivery. Return None if the event is settled, otherwise the seconds to wait before a retry."""
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
    """Start no more deliveries, and wait up to STOP_SECONDS for those in progress."""
    threads = set[threading.Thread]().union(*(each.stop() for each in deliveries))
    deadline = time.monotonic() + STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


_under_way: dict[str, Deliveries] = {}
"""By the name of the trigger."""


class DeliveriesCollector(Collector):
    """Reports the undelivered events at each scrape."""

    def collect(self) -> Iterator[Metric]:
        labels = ["service", "trigger"]
        waiting = GaugeMetricFamily("event_deliveries_waiting", "Events read and not yet delivered.", labels=labels)
        lag = GaugeMetricFamily("event_delivery_lag_seconds", "Age of the oldest of them.", labels=labels)
        for name, deliveries in list(_under_way.items()):
            waiting.add_metric([SERVICE, name], deliveries.waiting())
            lag.add_metric([SERVICE, name], deliveries.lag())
        yield from (waiting, lag)
