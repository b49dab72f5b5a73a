"""The topics, and events as binary-mode CloudEvents (CloudEvents Kafka binding 1.0.2, 3.2)."""

import contextlib
from collections.abc import Mapping

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError

EVENTS = "aegis.user.events"
DEAD_LETTERS = "aegis.user.dead-letters"
PARTITIONS = 6
"""Of EVENTS: so many users' events are handled side by side by one event function."""

CONTENT_TYPE = "application/json"
_PREFIX = "ce_"

Headers = list[tuple[str, bytes]]


def create_topics(bootstrap_servers: str) -> None:
    """Creates the topics that are missing; leaves those that are there."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        for topic, partitions in ((EVENTS, PARTITIONS), (DEAD_LETTERS, 1)):
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(topic, partitions, -1)])
    finally:
        admin.close()


def to_headers(attributes: Mapping[str, str]) -> Headers:
    """The headers of a record that carries an event with these attributes."""
    return [("content-type", CONTENT_TYPE.encode())] + [
        (_PREFIX + name, value.encode()) for name, value in attributes.items()
    ]


def to_attributes(headers: Headers) -> dict[str, str]:
    """The attributes of the event in a record; empty for a record that is no CloudEvent."""
    return {name.removeprefix(_PREFIX): value.decode() for name, value in headers if name.startswith(_PREFIX)}
