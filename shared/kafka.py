"""The topics, and events as binary-mode CloudEvents (CloudEvents Kafka binding 1.0.2, 3.2)."""

import contextlib
import re
from collections.abc import Mapping

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

EVENTS = "aegis.user.events"
DEAD_LETTERS = "aegis.user.dead-letters"
PARTITIONS = 6
"""Of EVENTS: so many users' events are handled side by side by one event function."""

_PARTITIONS = {EVENTS: PARTITIONS, DEAD_LETTERS: 1}

CONTENT_TYPE = "application/json"
_PREFIX = "ce_"
_ATTRIBUTE = _PREFIX + "[a-z0-9]+"  # CloudEvents 1.0.2, 3.1

Headers = list[tuple[str, bytes | None]]


def ensure_topics(admin: KafkaAdminClient) -> str:
    """Creates the topics that are missing.

    Returns the id of the topic of events. Another id than before means that the broker has forgotten what it
    held, as the embedded one does when it ends.
    """
    unknown = UnknownTopicOrPartitionError.errno
    missing = [topic["name"] for topic in admin.describe_topics(list(_PARTITIONS)) if topic["error_code"] == unknown]
    for name in missing:
        with contextlib.suppress(TopicAlreadyExistsError):
            admin.create_topics([NewTopic(name, _PARTITIONS[name], -1)])
    (described,) = admin.describe_topics([EVENTS])
    if described["error_code"] or not described["topic_id"]:
        raise for_code(described["error_code"])
    return str(described["topic_id"])


def to_headers(attributes: Mapping[str, str]) -> Headers:
    """The headers of a record that carries an event with these attributes."""
    headers: Headers = [("content-type", CONTENT_TYPE.encode())]
    return headers + [(_PREFIX + name, value.encode()) for name, value in attributes.items()]


def to_attributes(headers: Headers) -> dict[str, str]:
    """The attributes of the event in a record; empty for a record that is no CloudEvent."""
    return {
        name.removeprefix(_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if re.fullmatch(_ATTRIBUTE, name)
    }
