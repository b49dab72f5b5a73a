"""Twilio's Messages resource (API 2010-04-01) for texts without media: the same errors, responses and paging.

https://www.twilio.com/docs/messaging/api/message-resource
"""

import base64
import os
import re
import secrets
from datetime import datetime
from email.utils import format_datetime
from itertools import dropwhile
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request

from knative.local.inbox import Message, is_authorized, messages, now, store

MAX_BODY = 1600
"""Characters."""
MAX_VALIDITY_SECONDS = 36_000
MAX_PAGE_SIZE = 1000
PATH = "/2010-04-01/Accounts/<account_sid>/Messages"

PHONE_NUMBER = r"\+[1-9][0-9]{6,14}"
SENDER = rf"{PHONE_NUMBER}|[0-9]{{5,6}}|(?=.*[A-Za-z])[A-Za-z0-9 &_+-]{{1,11}}"
"""A number, a short code or an alphanumeric sender."""
SERVICE = "MG[0-9a-f]{32}"
# https://www.twilio.com/docs/iam/test-credentials
REFUSED_RECIPIENTS = {
    "+15005550001": (21211, "Invalid 'To' Phone Number"),
    "+15005550002": (21612, "The 'To' phone number is not currently reachable using the 'From' phone number"),
    "+15005550003": (21408, "Permission to send an SMS has not been enabled for the region of the 'To' number"),
    "+15005550004": (21610, "Attempt to send to unsubscribed recipient"),
    "+15005550009": (21614, "'To' number is not a valid mobile number"),
}
REFUSED_SENDERS = {
    "+15005550001": (21212, "Invalid 'From' Phone Number"),
    "+15005550007": (21606, "The 'From' phone number is not a valid, SMS-capable number for your account"),
    "+15005550008": (21611, "This 'From' number has exceeded the maximum number of queued messages"),
}

# 3GPP TS 23.038. A character of the extension counts twice.
GSM_BASIC = set(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
GSM_EXTENSION = set("\f^{}\\[~]|€")

Answer = tuple[Response, int]

twilio = Blueprint("twilio", __name__)


@twilio.before_request
def authenticate() -> Answer | None:
    credentials = os.environ["SMS_API_KEY"]
    is_ours = is_authorized("Basic " + base64.b64encode(credentials.encode()).decode())
    if is_ours and (request.view_args or {}).get("account_sid") == credentials.partition(":")[0]:
        return None
    response, status = _error(401, 20003, "Authenticate")
    response.headers["WWW-Authenticate"] = 'Basic realm="Twilio API"'
    return response, status


@twilio.after_request
def name_request(response: Response) -> Response:
    response.headers["Twilio-Request-Id"] = f"RQ{secrets.token_hex(16)}"
    return response


@twilio.post(f"{PATH}.json")
def send_text(account_sid: str) -> Answer:
    """Return 201 for a queued text."""
    to, sender, service, body = (request.form.get(name, "") for name in ("To", "From", "MessagingServiceSid", "Body"))
    if refusal := _refusal(to, sender, service, body, request.form.get("ValidityPeriod", "1")):
        return _error(400, *refusal)
    text: Message = {
        "id": f"SM{secrets.token_hex(16)}",
        "channel": "sms",
        "from": service or sender,
        "to": to,
        "cc": [],
        "bcc": [],
        "subject": "",
        "text": body,
        "html": "",
        "sent_at": now(),
    }
    store([text])
    # A service picks the sender later, so the text is accepted before it is queued.
    created = {"status": "accepted" if service else "queued", "date_sent": None}
    return jsonify(_resource(text, account_sid) | created), 201


@twilio.get(f"{PATH}/<sid>.json")
def fetch_text(account_sid: str, sid: str) -> Answer:
    for text in _texts():
        if text["id"] == sid:
            return jsonify(_resource(text, account_sid)), 200
    return _error(404, 20404, f"The requested resource {request.path} was not found")


@twilio.get(f"{PATH}.json")
def list_texts(account_sid: str) -> Answer:
    """List texts, newest first, filtered by To, From and DateSent."""
    page, size = request.args.get("Page", "0"), request.args.get("PageSize", "50")
    if not re.fullmatch("[0-9]{1,6}", page) or not re.fullmatch("[0-9]*[1-9][0-9]*", size):
        return _error(400, 20001, "Page and PageSize must be whole numbers, and PageSize at least 1")
    if len(size) > 4 or int(size) > MAX_PAGE_SIZE:
        return _error(400, 20007, "Page size too large")
    found = [text for text in _texts() if _is_wanted(text)]
    # The token is the newest text of page 0, so that texts sent since then do not shift pages.
    if token := request.args.get("PageToken"):
        found = list(dropwhile(lambda text: text["id"] != token.removeprefix("PA"), found))
    return jsonify(_page(found, int(page), int(size), account_sid)), 200


@twilio.route(f"{PATH}.json", methods=["PUT", "PATCH", "DELETE"])
@twilio.route(f"{PATH}/<sid>.json", methods=["POST", "PUT", "PATCH", "DELETE"])
def refuse_method(account_sid: str, sid: str = "") -> Answer:
    return _error(405, 20004, "Method not allowed")


def count_segments(body: str) -> int:
    """Return the number of SMS for a text: 160 characters of GSM-7 or 70 of UCS-2 in one, 153 or 67 each in several."""
    if set(body) <= GSM_BASIC | GSM_EXTENSION:
        widths = [2 if character in GSM_EXTENSION else 1 for character in body]
        alone, part = 160, 153
    else:
        widths = [len(character.encode("utf-16-le")) // 2 for character in body]
        alone, part = 70, 67
    if sum(widths) <= alone:
        return 1
    segments, room = 1, part
    for width in widths:
        if width > room:  # no character is split
            segments, room = segments + 1, part
        room -= width
    return segments


def _refusal(to: str, sender: str, service: str, body: str, validity: str) -> tuple[int, str] | None:
    """Return the error code and message if a text is refused."""
    is_validity = bool(re.fullmatch("[0-9]{1,5}", validity)) and 1 <= int(validity) <= MAX_VALIDITY_SECONDS
    refusals = {
        21604: (not to, "A 'To' phone number is required."),
        21603: (not sender and not service, "A 'From' phone number is required."),
        21602: (not body, "Message body is required."),
        21211: (not re.fullmatch(PHONE_NUMBER, to), f"Invalid 'To' Phone Number: {to}"),
        21701: (service and not re.fullmatch(SERVICE, service), f"The Messaging Service Sid {service} is invalid."),
        21212: (sender and not re.fullmatch(SENDER, sender), f"Invalid 'From' Phone Number: {sender}"),
        21266: (to == sender, f"'To' and 'From' number cannot be the same: {to}"),
        21617: (len(body) > MAX_BODY, f"The concatenated message body exceeds the {MAX_BODY} character limit."),
        21624: (not is_validity, "Invalid validity period value"),
    }
    for code, (is_refused, message) in refusals.items():
        if is_refused:
            return code, message
    return REFUSED_RECIPIENTS.get(to) or REFUSED_SENDERS.get(sender)


def _texts() -> list[Message]:
    return [message for message in messages() if message["channel"] == "sms" and "id" in message]


def _is_wanted(text: Message) -> bool:
    """Return whether a text passes the filters. DateSent< and DateSent> take a day or a time in UTC, DateSent a day."""
    wanted = request.args
    day, until, since = (wanted.get(name, "").removesuffix("Z") for name in ("DateSent", "DateSent<", "DateSent>"))
    sent = text["sent_at"]
    return (
        wanted.get("To") in (None, text["to"])
        and wanted.get("From") in (None, text["from"])
        and sent.startswith(day[:10])
        and sent[: len(until)] <= until
        and sent[: len(since)] >= since
    )


def _page(found: list[Message], page: int, size: int, account_sid: str) -> dict[str, Any]:
    filters = {name: value for name, value in request.args.items() if name not in ("Page", "PageSize", "PageToken")}

    def uri(number: int) -> str:
        token = {"PageToken": f"PA{found[0]['id']}"} if number and found else {}
        return f"{request.path}?{urlencode({**filters, 'PageSize': size, 'Page': number, **token})}"

    start = page * size
    shown = found[start : start + size]
    return {
        "messages": [_resource(text, account_sid) for text in shown],
        "page": page,
        "page_size": size,
        "start": start,
        "end": start + max(len(shown) - 1, 0),
        "uri": uri(page),
        "first_page_uri": uri(0),
        "next_page_uri": uri(page + 1) if start + size < len(found) else None,
        "previous_page_uri": uri(page - 1) if page else None,
    }


def _resource(text: Message, account_sid: str) -> dict[str, Any]:
    """Return a text as fetched later: always delivered, as nothing on this machine can delay it."""
    date = format_datetime(datetime.fromisoformat(text["sent_at"]))
    uri = f"/2010-04-01/Accounts/{account_sid}/Messages/{text['id']}"
    is_service = bool(re.fullmatch(SERVICE, text["from"]))
    return {
        "account_sid": account_sid,
        "api_version": "2010-04-01",
        "body": text["text"],
        "date_created": date,
        "date_sent": date,
        "date_updated": date,
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": None if is_service else text["from"],
        "messaging_service_sid": text["from"] if is_service else None,
        "num_media": "0",
        "num_segments": str(count_segments(text["text"])),
        "price": None,
        "price_unit": "USD",
        "sid": text["id"],
        "status": "delivered",
        "subresource_uris": {"media": f"{uri}/Media.json"},
        "to": text["to"],
        "uri": f"{uri}.json",
    }


def _error(status: int, code: int, message: str) -> Answer:
    more = f"https://www.twilio.com/docs/errors/{code}"
    return jsonify(code=code, message=message, more_info=more, status=status), status
