"""The topic, and events as binary-mode CloudEvents (CloudEvents Kafka binding 1.0.2, 3.2)."""

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
"""Of EVENTS: so many users' events are handled side by side by one event function."""

AWAY_SECONDS = 2
"""After so long without an answer a broker is taken for dead."""

CONTENT_TYPE = "application/json"
_PREFIX = "ce_"

Headers = list[tuple[str, bytes | None]]


def consumer_groups(trigger: str, topic_id: str) -> tuple[str, str]:
    """The groups that may read the topic for a Trigger: that of Knative's broker, and that of our dispatcher.

    Knative names it by the default of its `triggers.consumergroup.template`, makes it with the Trigger and deletes it
    with the Trigger: so where it has committed an offset, it is the one that delivers. The dispatcher's offsets count
    only in the topic that they were committed for.
    """
    return f"knative-trigger-{NAMESPACE}-{trigger}", f"knative-trigger-{trigger}-{topic_id}"


def ensure_topic(admin: KafkaAdminClient) -> str:
    """Creates the topic of events where it is missing.

    Returns its id. Another id than before means that the broker has forgotten what it held, as the embedded one does
    when it ends.
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
    """The headers of a record that carries an event with these attributes."""
    headers: Headers = [("content-type", CONTENT_TYPE.encode())]
    return headers + [(_PREFIX + name, value.encode()) for name, value in attributes.items()]


def to_attributes(headers: Headers) -> dict[str, str]:
    """The attributes of the event in a record; empty for a record that is no CloudEvent of version 1.0."""
    attributes = {
        name.removeprefix(_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(_PREFIX)
    }
    return {} if cloud_events.fault(attributes) else attributes


@contextlib.contextmanager
def connected(client: Callable[..., Any], **configuration: Any) -> Iterator[Any]:
    """A client of kafka-python, closed at the end, that waits seconds for a broker that is away, not minutes.

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
        for left_behind in networks:  # by the constructor: a thread and four files, for each attempt
            left_behind.close()
        raise
    with contextlib.closing(connected):
        yield connected
