"""The AsyncAPI 3.1 document, made from the event types and the functions that handle them."""

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
    """Return the document for all events and the functions that handle them, served at a URL, as a JSON object."""
    announce = {
        "action": "send",
        "summary": "Announce a change",
        "description": "Committed in the same transaction as the change, so neither exists without the other.",
        **_operation("announced", [event.type for event in ALL_EVENTS]),
    }
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Aegis user service: events",
            "version": "1.0.0",
            "description": (
                "The events that the service announces. Events contain ids, but never personal data or secrets. The "
                "schema of a type only gains fields, so ignore fields that you do not know. Any other change is a new "
                "type that ends with the next version."
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
                "description": "Kafka requires no credentials. On a cluster, network policies limit who can connect.",
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
                    "CloudEvents 1.0 in binary mode (Kafka protocol binding 1.0.2). The events of one user are in one "
                    "partition, in the order in which they happened. There is no order between users. Each event is "
                    "delivered at least once: `ce_source` and `ce_id` together identify it in every delivery."
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
    "announced": "Events that anyone can consume.",
    "function": "Events that the functions of the service handle.",
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
    del payload["$schema"]  # AsyncAPI's dialect covers everything in these schemas
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
        "ce_id": {"type": "string", "format": "uuid", "description": "The event's id, the same in every delivery."},
        "ce_source": {"const": SOURCE},
        "ce_type": {"type": "string", "description": "Ends with the version of the contract."},
        "ce_time": {"type": "string", "format": "date-time", "description": "When the change was made."},
        "ce_subject": _USER_ID,
        "ce_partitionkey": {**_USER_ID, "description": "The user's id, which is also the key of the record."},
        "ce_requestid": {
            "type": "string",
            "description": "The X-Request-Id of the request that led to the event; empty if there was none.",
        },
    },
}
