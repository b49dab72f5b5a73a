"""The lag of each Trigger's consumer group: the number of records in the topic that it has yet to settle."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError, for_code
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.events import kafka
from shared.runtime.manifests import triggers
from shared.runtime.metrics import SERVICE

SCRAPE_SECONDS = 2.0
"""The longest that a scrape waits for the broker."""

log = logging.getLogger(__name__)


class Position(NamedTuple):
    """The position of a Trigger's consumer group in a partition."""

    trigger: str
    group: str
    partition: int
    offset: int
    """Offset of the next record that the group has not settled."""
    lag: int
    """Number of records from there to the end of the partition."""


def read() -> list[Position]:
    """Read the positions that the groups have committed.

    Raises:
        KafkaError: the broker is unreachable or does not have the topic.
    """
    with kafka.connected(KafkaAdminClient) as admin:
        (topic,) = admin.describe_topics([kafka.EVENTS])
        if topic["error_code"]:
            raise for_code(topic["error_code"])
        partitions = [TopicPartition(kafka.EVENTS, each["partition_index"]) for each in topic["partitions"]]
        groups = {trigger.name: kafka.consumer_groups(trigger.name, topic["topic_id"]) for trigger in triggers()}
        offsets = admin.list_group_offsets({group: partitions for both in groups.values() for group in both})
        # After the offsets, so that no group is ahead of the end.
        ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    found = []
    for trigger, both in groups.items():
        for group in both:
            committed = {place.partition: at.offset for place, at in offsets[group].items() if at.offset >= 0}
            found += [
                Position(
                    trigger, group, number, offset, max(0, ends[TopicPartition(kafka.EVENTS, number)].offset - offset)
                )
                for number, offset in sorted(committed.items())
            ]
            if committed:
                break
    return found


class LagCollector(Collector):
    """Reports the lag; reports nothing while the broker is unreachable."""

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lag")
        self._lock = threading.Lock()
        self._reading: Future[list[Position]] | None = None

    def describe(self) -> Iterator[Metric]:
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        offset, lag = _families()
        for position in self._positions():
            labels = [SERVICE, position.group, kafka.EVENTS, str(position.partition), position.trigger]
            offset.add_metric(labels, position.offset)
            lag.add_metric(labels, position.lag)
        yield from (offset, lag)

    def _positions(self) -> list[Position]:
        with self._lock:  # scrapes at the same time share an answer
            if self._reading is None or self._reading.done():
                self._reading = self._reader.submit(read)
            reading = self._reading
        try:
            return reading.result(SCRAPE_SECONDS)
        except (KafkaError, OSError):  # a TimeoutError is an OSError
            return []
        except Exception:
            log.exception("cannot read the lag of the consumer groups")
            return []


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    """Return the metrics with the names and labels of kafka-exporter, plus the label `trigger`."""
    labels = ["service", "consumergroup", "topic", "partition", "trigger"]
    return (
        GaugeMetricFamily("kafka_consumergroup_current_offset", "Offset of a consumer group.", labels=labels),
        GaugeMetricFamily("kafka_consumergroup_lag", "Records that a consumer group has yet to settle.", labels=labels),
    )
