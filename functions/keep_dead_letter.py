"""Keep an event that could not be delivered."""

import base64
import codecs
import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from sqlalchemy import case, func
from sqlalchemy.dialects.postgresql import insert

from shared.framework.event_function import MAX_IDENTITY_LENGTH, event_function
from shared.framework.scaling import Scaling
from shared.postgresql.tables import dead_letter
from shared.postgresql.transactions import transaction
from shared.runtime import logs
from shared.runtime.resource_names import function_name

MAX_ERROR_LENGTH = 1000

log = logging.getLogger(__name__)


@event_function(
    scaling=Scaling("event", max_pods=1),  # storing one takes milliseconds: one pod keeps up with all Triggers
)
def keep_dead_letter(headers: Mapping[str, str], body: bytes) -> None:
    """Keep an event that could not be delivered, with the reason, until an operator decides (`aegis events dead`).

    The dead-letter sink of every Trigger. It accepts any request, even one that is not a CloudEvent. An event that
    arrives twice counts once, unless an operator has retried it in between.
    """
    attributes, data, content_type = _read(headers, body)
    if request_id := attributes.get("requestid"):
        logs.request_id.set(request_id)
    code, destination, said = (
        attributes.pop(f"knativeerror{name}", "") for name in ("code", "dest", "data")
    )  # Knative Eventing's extension attributes
    source, event_id = attributes.get("source", ""), attributes.get("id", "")
    if not (source and event_id and len(source + event_id) <= MAX_IDENTITY_LENGTH):
        content = json.dumps([sorted(attributes.items()), content_type]).encode() + data
        source, event_id = "", f"sha256:{hashlib.sha256(content).hexdigest()}"
    row = {
        "function": _function(destination),
        "source": source,
        "event_id": event_id,
        "type": attributes.get("type", ""),
        "subject": attributes.get("subject"),
        "attributes": attributes,
        "data": data,
        "content_type": content_type,
        "error": _error(code, said),
    }
    keep = insert(dead_letter).values(row)
    with transaction() as connection:
        connection.execute(
            keep.on_conflict_do_update(
                constraint="dead_letter_event",
                set_={
                    **{name: keep.excluded[name] for name in row},
                    "count": dead_letter.c.count + case((dead_letter.c.retried_at.is_not(None), 1), else_=0),
                    "last_at": func.now(),
                    "retried_at": None,
                },
            )
        )
    log.warning("an event was given up", extra={name: row[name] for name in ("function", "event_id", "type", "error")})


def _read(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, str], bytes, str | None]:
    """Return the event's attributes, as text that PostgreSQL can store, its data, and the content type of the data."""
    names = {name.lower(): value for name, value in headers.items()}
    content_type = names.get("content-type", "")
    if content_type.lower().startswith("application/cloudevents"):
        return _read_structured(body) or ({}, body, _text(content_type))
    attributes = {
        _text(name.removeprefix("ce-")): _decoded(value) for name, value in names.items() if name.startswith("ce-")
    }
    return attributes, body, _text(content_type) or None


def _read_structured(body: bytes) -> tuple[dict[str, str], bytes, str | None] | None:
    """Read an event in the JSON format of CloudEvents; return None if it is not one."""
    try:
        event: Any = json.loads(body)
        if not isinstance(event, dict):
            return None
        data = json.dumps(event.pop("data")).encode() if "data" in event else b""
        if "data_base64" in event:
            data = base64.b64decode(event.pop("data_base64"), validate=True)
    except (ValueError, TypeError, RecursionError):
        return None
    attributes = {
        _text(name): _text(value if isinstance(value, str) else json.dumps(value)) for name, value in event.items()
    }
    return attributes, data, attributes.get("datacontenttype", "application/json")


def _decoded(value: str) -> str:
    """Decode an attribute in a header: percent-encoded UTF-8 (CloudEvents HTTP binding 1.0.2, 3.1.3.2)."""
    return _text(unquote_to_bytes(value.encode("latin-1", "replace")).decode("utf-8", "replace"))


def _text(value: str) -> str:
    """Replace what PostgreSQL cannot store as text: NUL and unpaired surrogates."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _function(destination: str) -> str:
    """The function at a URL: http://send-email.NAMESPACE.svc.cluster.local in a cluster, else http://HOST/send-email."""
    with contextlib.suppress(ValueError):
        url = urlsplit(destination)
        name = url.path.strip("/") or (url.hostname or "").partition(".")[0]
        if re.fullmatch("[a-z][a-z0-9-]{0,62}", name):
            return function_name(name)
    return "unknown"


def _error(code: str, said: str) -> str:
    """Return why delivery failed: the status and the problem's detail, or else the response of the function."""
    with contextlib.suppress(ValueError):  # Knative encodes it as base64 and may cut the last character
        said = _text(codecs.getincrementaldecoder("utf-8")().decode(base64.b64decode(said, validate=True)))
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        said = _text(str(json.loads(said)["detail"]))
    return f"{code or 'no answer'} {said}".strip()[:MAX_ERROR_LENGTH]
