"""The topic, and its records: CloudEvents in binary mode (CloudEvents Kafka binding 1.0.2, 3.2)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code
from kafka.net.compat import KafkaNetClient

from shared.events import cloud_events
from shared.runtime.manifests import NAMESPACE
from shared.runtime.settings import settings

EVENTS = "aegis.user.events"
PARTITIONS = 6
"""Partitions of EVENTS: an event function processes as many events in parallel."""

AWAY_SECONDS = 2
"""A broker that does not answer for this long counts as unreachable."""

CONTENT_TYPE = "application/json"
_PREFIX = "ce_"

Headers = list[tuple[str, bytes | None]]


def consumer_groups(trigger: str, topic_id: str) -> tuple[str, str]:
    """Return the consumer groups of a Trigger: the one of Knative's broker and the one of our dispatcher.

    Knative names its group by the default of `triggers.consumergroup.template`, and creates and deletes it with the
    Trigger: so if it has committed an offset, Knative delivers. The name of the dispatcher's group contains the id of
    the topic, because offsets are valid only for one topic.
    """
    return f"knative-trigger-{NAMESPACE}-{trigger}", f"knative-trigger-{trigger}-{topic_id}"


def ensure_topic(admin: KafkaAdminClient) -> str:
    """Create the topic of events if it is missing, and return its id.

    A new id means that the broker has lost its events; the embedded one loses them when it stops.
    """
    (topic,) = admin.describe_topics([EVENTS])
    if topic["error_code"] == UnknownTopicOrPartitionError.errno:
        with contextlib.suppress(TopicAlreadyExistsError):
            admin.create_topics([NewTopic(EVENTS, PARTITIONS, -1)])
        admin.wait_for_topics([EVENTS])
        (topic,) = admin.describe_topics([EVENTS])
    if topic["error_code"] or not topic["topic_id"]:
        raise for_code(topic["error_code"])
    return str(topic["topic_id"])


def to_headers(attributes: Mapping[str, str]) -> Headers:
    """Return the headers of a record for an event with these attributes."""
    headers: Headers = [("content-type", CONTENT_TYPE.encode())]
    return headers + [(_PREFIX + name, value.encode()) for name, value in attributes.items()]


def to_attributes(headers: Headers) -> dict[str, str]:
    """Return the attributes of the event in a record; empty if the record is not a CloudEvent 1.0."""
    attributes = {
        name.removeprefix(_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(_PREFIX)
    }
    return {} if cloud_events.fault(attributes) else attributes


@contextlib.contextmanager
def connected(client: Callable[..., Any], **configuration: Any) -> Iterator[Any]:
    """Open a client of kafka-python, and close it at the end. It waits seconds for an unreachable broker, not minutes.

    Raises:
        KafkaTimeoutError: no broker answers.
    """
    networks: list[KafkaNetClient] = []

    def network(**options: Any) -> KafkaNetClient:
        networks.append(KafkaNetClient(**options))
        return networks[-1]

    try:
        connected = client(
            bootstrap_servers=settings().kafka_bootstrap_servers,
            kafka_client=network,
            request_timeout_ms=AWAY_SECONDS * 1000,
            bootstrap_timeout_ms=AWAY_SECONDS * 1000,
            reconnect_backoff_max_ms=500,
            **configuration,
        )
    except BaseException:
        for left_behind in networks:  # the constructor leaves a thread and four files open each time it fails
            left_behind.close()
        raise
    with contextlib.closing(connected):
        yield connected
