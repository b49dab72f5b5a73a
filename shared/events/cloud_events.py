"""The requirements of CloudEvents 1.0.2 on an event's attributes (sections 3 and 3.1)."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

REQUIRED = ("id", "source", "type")

# RFC 3339, 5.6; datetime checks that the day exists.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3])(:[0-9]{2}){2}([.][0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})",
    re.IGNORECASE | re.ASCII,
)
_CHARACTER = r"[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}"
# RFC 3986, 4.1: a colon in the first segment ends a scheme.
_URI_REFERENCE = re.compile(
    rf"([A-Za-z][A-Za-z0-9+.-]*:|(?![^/?#]*:))(//({_CHARACTER}|[\[\]])*(?=[/?#]|\Z))?"
    rf"({_CHARACTER}|/)*([?]({_CHARACTER}|[/?])*)?(#({_CHARACTER}|[/?])*)?"
)
# Section 3, String, but U+0080 to U+009F are allowed: raw UTF-8 contains them, as WSGI reads headers as Latin-1.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def fault(attributes: Mapping[str, object]) -> str:
    """Return why the attributes of an event are invalid; empty if they are valid."""
    if attributes.get("specversion") != "1.0":
        return "The event is not a CloudEvent of version 1.0."
    for name in REQUIRED:
        if not (attributes.get(name) and isinstance(attributes[name], str)):
            return f"The {name} of the event is missing, empty or not a string."
    if not all(re.fullmatch("[a-z0-9]+", name) for name in attributes):
        return "The name of an attribute contains characters other than a to z and 0 to 9."
    for name in ("source", "dataschema"):
        if name in attributes and not _is_uri_reference(attributes[name]):
            return f"The {name} of the event is not a URI reference."
    if "time" in attributes and parse_time(attributes["time"]) is None:
        return "The time of the event is not an RFC 3339 timestamp."
    return ""


def parse_time(time: object) -> datetime | None:
    """Parse an RFC 3339 timestamp and convert it to UTC; None if it is invalid."""
    if not (isinstance(time, str) and _TIME.fullmatch(time)):
        return None
    try:
        return datetime.fromisoformat(time.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # the day does not exist, or not in UTC
        return None


def is_text(value: object) -> bool:
    """Return whether an attribute's value contains no control characters and no lone surrogates."""
    return not (isinstance(value, str) and _NO_TEXT.search(value))


def _is_uri_reference(text: object) -> bool:
    return isinstance(text, str) and text != "" and _URI_REFERENCE.fullmatch(text) is not None
