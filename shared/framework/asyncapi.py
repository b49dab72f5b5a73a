"""The AsyncAPI 3.1 document, made from the events, and from what the decorators of the functions state of them."""

import inspect
from collections.abc import Iterable
from typing import Any

from shared.events import kafka
from shared.events.contract import schema_of
from shared.events.types import ALL_EVENTS, SOURCE, Event
from shared.framework.openapi import contact
from shared.framework.registry import EventFunction

CHANNEL = "events"
KAFKA_BINDINGS = "0.5.0"


def document(functions: Iterable[EventFunction], url: str) -> dict[str, Any]:
    """The document for all events and for the functions that take them, served at a URL, as a JSON object."""
    announce = {
        "action": "send",
        "summary": "Announce what has changed",
        "description": "In the transaction of the change: there is no change without its event, and no event without.",
        **_operation("announced", [event.type for event in ALL_EVENTS]),
    }
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Aegis user service: events",
            "version": "1.0.0",
            "description": (
                "What the service announces, for whoever wants to know. An event holds ids, never personal data or a "
                "secret. What the schema of a type says of a field stays so; new fields may come, so ignore those that "
                "you do not know; anything else is a new type, with the next version at its end."
            ),
            "contact": contact(url),
            "license": {"name": "MIT", "url": "https://spdx.org/licenses/MIT.html"},
            "tags": [_tag(name) for name in TAGS],
        },
        "defaultContentType": kafka.CONTENT_TYPE,
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "description": "Kafka asks for no credentials. On a cluster, network policies say who can connect.",
                "variables": {
                    "bootstrap": {
                        "default": "localhost:9092",
                        "description": "The setting KAFKA_BOOTSTRAP_SERVERS of the service.",
                    }
                },
            }
        },
        "channels": {
            CHANNEL: {
                "address": kafka.EVENTS,
                "title": "What happened to users",
                "description": (
                    "CloudEvents 1.0 in binary mode (Kafka protocol binding 1.0.2). The events of one user stand in "
                    "one partition, in the order in which they happened; those of two users have no order. Each comes "
                    "at least once: `ce_source` and `ce_id` together name it, and are the same when it comes again."
                ),
                "messages": {event.type: {"$ref": f"#/components/messages/{event.type}"} for event in ALL_EVENTS},
                "bindings": {
                    "kafka": {
                        "topic": kafka.EVENTS,
                        "partitions": kafka.PARTITIONS,
                        "bindingVersion": KAFKA_BINDINGS,
                    }
                },
            }
        },
        "operations": {"announce": announce}
        | {
            function.name: _receive(function, taken)
            for function in sorted(functions, key=lambda function: function.name)
            if (taken := [event.type for event in ALL_EVENTS if event.type in function.handles])
        },
        "components": {
            "messages": {event.type: _message(event) for event in ALL_EVENTS},
            "schemas": {"CloudEvent": _HEADERS},
            "tags": {name: {"name": name, "description": description} for name, description in TAGS.items()},
        },
    }


TAGS = {
    "announced": "What anybody may consume.",
    "function": "What the event functions of the service itself take of it.",
}


def _receive(function: EventFunction, taken: list[str]) -> dict[str, Any]:
    first, _, rest = (inspect.getdoc(function.handler) or "").partition("\n")
    described = {"summary": first.rstrip(".")} | ({"description": rest.strip()} if rest.strip() else {})
    return {"action": "receive", **described, **_operation("function", taken)}


def _operation(tag: str, types: list[str]) -> dict[str, Any]:
    return {
        "channel": {"$ref": f"#/channels/{CHANNEL}"},
        "messages": [{"$ref": f"#/channels/{CHANNEL}/messages/{type_}"} for type_ in types],
        "tags": [_tag(tag)],
    }


def _tag(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/tags/{name}"}


def _message(event: type[Event]) -> dict[str, Any]:
    payload = schema_of(event)
    del payload["$schema"]  # AsyncAPI has its own dialect, which takes all that is in these schemas
    return {
        "name": event.type,
        "title": event.__name__,
        "summary": payload["description"],
        "headers": {
            "type": "object",
            "allOf": [{"$ref": "#/components/schemas/CloudEvent"}],
            "properties": {"ce_type": {"const": event.type}},
        },
        "payload": payload,
        "correlationId": {
            "location": "$message.header#/ce_requestid",
            "description": "The X-Request-Id of the request that led to the event.",
        },
        "bindings": {"kafka": {"key": _USER_ID, "bindingVersion": KAFKA_BINDINGS}},
    }


_USER_ID = {"type": "string", "format": "uuid", "description": "The user's id."}
_HEADERS = {
    "type": "object",
    "required": [
        "content-type",
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_subject",
        "ce_partitionkey",
        "ce_requestid",
    ],
    "properties": {
        "content-type": {"const": kafka.CONTENT_TYPE},
        "ce_specversion": {"const": "1.0"},
        "ce_id": {"type": "string", "format": "uuid", "description": "Of this event, however often it comes."},
        "ce_source": {"const": SOURCE},
        "ce_type": {"type": "string", "description": "Its end is the version of the contract."},
        "ce_time": {"type": "string", "format": "date-time", "description": "When the change was made."},
        "ce_subject": _USER_ID,
        "ce_partitionkey": {**_USER_ID, "description": "The user's id, which is the key of the record too."},
        "ce_requestid": {
            "type": "string",
            "description": "The X-Request-Id of the request that led to the event; empty where there was none.",
        },
    },
}
