"""What CloudEvents 1.0.2 asks of an event's attributes (sections 3 and 3.1), whoever reads them."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

REQUIRED = ("id", "source", "type")

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
# Section 3, String, but for U+0080 to U+009F: of those a header of raw UTF-8, which WSGI reads as Latin-1, is full.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def fault(attributes: Mapping[str, object]) -> str:
    """Why these are not valid attributes of an event; empty if they are."""
    if attributes.get("specversion") != "1.0":
        return "The event is not of version 1.0 of CloudEvents."
    for name in REQUIRED:
        if not (attributes.get(name) and isinstance(attributes[name], str)):
            return f"The {name} of the event is missing, empty or no text."
    if not all(re.fullmatch("[a-z0-9]+", name) for name in attributes):
        return "The name of an attribute has other characters than a to z and 0 to 9."
    for name in ("source", "dataschema"):
        if name in attributes and not _is_uri_reference(attributes[name]):
            return f"The {name} of the event is not a URI reference."
    if "time" in attributes and parse_time(attributes["time"]) is None:
        return "The time of the event is not one of RFC 3339."
    return ""


def parse_time(time: object) -> datetime | None:
    """A time of RFC 3339, in UTC; None of anything else."""
    if not (isinstance(time, str) and _TIME.fullmatch(time)):
        return None
    try:
        return datetime.fromisoformat(time.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # there is no such day, or none in UTC
        return None


def is_text(value: object) -> bool:
    """Whether an attribute's value holds no control character and no half of a surrogate pair."""
    return not (isinstance(value, str) and _NO_TEXT.search(value))


def _is_uri_reference(text: object) -> bool:
    return isinstance(text, str) and text != "" and _URI_REFERENCE.fullmatch(text) is not None
