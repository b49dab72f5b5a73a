"""The trigger dispatcher: delivers events from Kafka to the functions whose Trigger matches.

    FUNCTION_URL=http://{service}.aegis-user-service.svc.cluster.local python -m knative.dispatcher

It does what Knative's Kafka broker does, for clusters without Knative Eventing and for one machine: binary
CloudEvents over HTTP, in order per partition, retries with back-off, then the dead-letter topic. An offset is
committed when its event is settled, so whatever dies, an event is delivered at least once.
"""

import contextlib
import logging
import logging.config
import os
import signal
import sys
import threading
from typing import Any
from urllib.parse import quote

import urllib3
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from shared import kafka, logs
from shared.manifests import Trigger, triggers
from shared.settings import InvalidSettings, load, settings

CHECK_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0

# What Knative's Kafka broker sends again; any other answer from 300 on goes to the dead letters at once.
RETRIED_STATUSES = frozenset({404, 408, 409, 429})

# CloudEvents HTTP binding 1.0.2, 3.1.3.2: everything else in a header value is percent-encoded.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')

log = logging.getLogger("dispatcher")
http = urllib3.PoolManager(maxsize=64, retries=False)


class Stopped(Exception):
    """The dispatcher stops; the event in hand is not settled."""


def run(function_url: str, stopped: threading.Event) -> None:
    """Dispatches until stopped. A broker that has forgotten its events is read from the beginning."""
    topic_id, workers = "", Workers(function_url)
    try:
        while not stopped.is_set():
            try:
                with contextlib.closing(
                    KafkaAdminClient(bootstrap_servers=settings().kafka_bootstrap_servers)
                ) as admin:
                    while not stopped.is_set():
                        known, topic_id = topic_id, kafka.ensure_topics(admin)
                        if topic_id != known:
                            workers.stop()
                            workers.start(from_beginning=bool(known))
                        stopped.wait(CHECK_SECONDS)
            except (KafkaError, OSError) as error:
                log.warning("waiting for the broker", extra={"error": type(error).__name__})
                stopped.wait(CHECK_SECONDS)
    finally:
        workers.stop()


class Workers:
    """A thread for each trigger and partition."""

    def __init__(self, function_url: str) -> None:
        self._function_url = function_url
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, *, from_beginning: bool) -> None:
        self._stopped = threading.Event()
        for trigger in triggers():
            url = self._function_url.format(service=trigger.service)
            for partition in range(kafka.PARTITIONS):
                thread = threading.Thread(target=consume, args=(trigger, partition, url, from_beginning, self._stopped))
                thread.start()
                self._threads.append(thread)
        log.info("dispatching", extra={"triggers": [trigger.name for trigger in triggers()]})

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()


def consume(
    trigger: Trigger, partition: int, function_url: str, from_beginning: bool, stopped: threading.Event
) -> None:
    """Delivers one partition's events to one function until stopped, through every failure of the broker.

    from_beginning: not from the offset committed last, which may have been one of an earlier topic.
    """
    assigned = TopicPartition(kafka.EVENTS, partition)
    while not stopped.is_set():
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=settings().kafka_bootstrap_servers,
                group_id=f"knative-trigger-{trigger.name}",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_poll_records=1,
            )
            try:
                # Assigned, not subscribed: one dispatcher owns all partitions, and starts without a group join.
                consumer.assign([assigned])
                if from_beginning:
                    consumer.seek_to_beginning(assigned)
                while not stopped.is_set():
                    for record in consumer.poll(timeout_ms=500).get(assigned, []):
                        settle(trigger, record, function_url, stopped)
                        consumer.commit()
                        from_beginning = False
            finally:
                consumer.close()
        except Stopped:
            return
        except (KafkaError, OSError) as error:
            log.warning("waiting for the broker", extra={"error": type(error).__name__, "trigger": trigger.name})
            stopped.wait(CHECK_SECONDS)
        except Exception:
            log.exception("unexpected error; trying again", extra={"trigger": trigger.name, "partition": partition})
            stopped.wait(CHECK_SECONDS)


def settle(trigger: Trigger, record: Any, function_url: str, stopped: threading.Event) -> None:
    """Delivers one event, or in the end puts it among the dead letters.

    Raises:
        Stopped: before the event was settled.
        KafkaError: the dead-letter topic did not take it.
    """
    attributes = kafka.to_attributes(record.headers)
    if not trigger.matches(attributes):
        return
    fields = {"trigger": trigger.name, "event_id": attributes.get("id"), "request_id": attributes.get("requestid")}
    for attempt in range(trigger.retries + 1):
        error = deliver(trigger, attributes, record.value, function_url)
        if error is None:
            return
        is_last = attempt == trigger.retries or not is_retried(error)
        log.warning("delivery failed", extra={**fields, "error": error, "attempt": attempt + 1, "is_last": is_last})
        if is_last:
            send_to_dead_letters(record, function_url, error)
            return
        if stopped.wait(backoff(trigger, attempt)):
            raise Stopped


def deliver(trigger: Trigger, attributes: dict[str, str], data: bytes, function_url: str) -> str | None:
    """POSTs an event to the function. Returns None when it took it, else the status or the kind of error."""
    headers = {f"ce-{name}": quote(value, safe=_HEADER_SAFE) for name, value in attributes.items()}
    try:
        response = http.request(
            "POST",
            function_url,
            body=data,
            headers={**headers, "Content-Type": kafka.CONTENT_TYPE},
            timeout=trigger.timeout_seconds,
        )
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return type(error).__name__
    return None if response.status < 300 else str(response.status)


def is_retried(error: str) -> bool:
    """Whether the same delivery may succeed later."""
    return not error.isdigit() or int(error) >= 500 or int(error) in RETRIED_STATUSES


def backoff(trigger: Trigger, attempt: int) -> float:
    """Seconds to wait after an attempt, counted from 0."""
    factor = 2**attempt if trigger.backoff_policy == "exponential" else attempt + 1
    return min(MAX_BACKOFF_SECONDS, trigger.backoff_seconds * float(factor))


def send_to_dead_letters(record: Any, function_url: str, error: str) -> None:
    """Keeps an event that could not be delivered, with the reason in Knative's extension attributes."""
    reason = {"knativeerrordest": function_url, "knativeerrorcode": error}
    producer = KafkaProducer(bootstrap_servers=settings().kafka_bootstrap_servers, acks="all", max_block_ms=10_000)
    try:
        headers = [*record.headers, *((f"ce_{name}", value.encode()) for name, value in reason.items())]
        producer.send(kafka.DEAD_LETTERS, key=record.key, value=record.value, headers=headers).get(timeout=10)
    finally:
        producer.close(timeout=1)


def main() -> None:
    try:
        logging.config.dictConfig(logs.configuration(load(os.environ, ["kafka"]).log_level))
        function_url = os.environ["FUNCTION_URL"]
    except InvalidSettings as error:
        sys.exit("\n".join(["the dispatcher cannot start with these settings:", *error.problems]))
    except KeyError:
        sys.exit(
            "the dispatcher cannot start: FUNCTION_URL is not set, such as http://{service}.NAMESPACE.svc.cluster.local"
        )
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    run(function_url, stopped)


if __name__ == "__main__":
    main()
