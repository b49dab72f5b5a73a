"""The topic, and events as binary-mode CloudEvents (CloudEvents Kafka binding 1.0.2, 3.2)."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code
from kafka.net.compat import KafkaNetClient

from shared.settings import settings

EVENTS = "aegis.user.events"
PARTITIONS = 6
"""Of EVENTS: so many users' events are handled side by side by one event function."""

AWAY_SECONDS = 2
"""After so long without an answer a broker is taken for dead."""

CONTENT_TYPE = "application/json"
_PREFIX = "ce_"
_REQUIRED = ("id", "source", "type")  # CloudEvents 1.0.2, 3.1
# RFC 3339, 5.6; which days there are is for datetime to say.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3])(:[0-9]{2}){2}([.][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
    re.IGNORECASE | re.ASCII,
)
_CHARACTER = r"[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}"
# RFC 3986, 4.1: a first segment with a colon is a scheme.
_URI_REFERENCE = re.compile(
    rf"([A-Za-z][A-Za-z0-9+.-]*:|(?![^/?#]*:))(//({_CHARACTER}|[\[\]])*(?=[/?#]|\Z))?"
    rf"({_CHARACTER}|/)*([?]({_CHARACTER}|[/?])*)?(#({_CHARACTER}|[/?])*)?"
)

Headers = list[tuple[str, bytes | None]]


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
    return attributes if _is_event(attributes) else {}


def _is_event(attributes: Mapping[str, str]) -> bool:
    """Whether these are the attributes of an event (CloudEvents 1.0.2, 3 and 3.1)."""
    uris = (attributes[name] for name in ("source", "dataschema") if name in attributes)
    return (
        attributes.get("specversion") == "1.0"
        and all(attributes.get(name) for name in _REQUIRED)
        and all(re.fullmatch("[a-z0-9]+", name) for name in attributes)
        and all(uri and _URI_REFERENCE.fullmatch(uri) for uri in uris)
        and ("time" not in attributes or _is_time(attributes["time"]))
    )


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text.upper())
    except ValueError:
        return False
    return _TIME.fullmatch(text) is not None


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
