"""SendGrid's API v3 for sending mails: the same errors, responses and headers.

https://www.twilio.com/docs/sendgrid/api-reference/mail-send
The Email Activity API (GET /v3/messages) is not implemented: /inbox shows what was sent.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from knative.local.inbox import Message, is_authorized, now, store

REFUSED_DOMAIN = "@refused.example.com"
MAX_BYTES = 30 * 1024 * 1024
MAX_RECIPIENTS = 1000
MAX_AHEAD_SECONDS = 72 * 3600
HELP = "http://sendgrid.com/docs/API_Reference/Web_API_v3/Mail/errors.html#"

ADDRESS = {"email": str, "name": str}
SHAPE: dict[str, Any] = {
    "personalizations": [
        {
            "to": [ADDRESS],
            "cc": [ADDRESS],
            "bcc": [ADDRESS],
            "from": ADDRESS,
            "subject": str,
            "substitutions": dict,
            "dynamic_template_data": dict,
            "send_at": int,
        }
    ],
    "from": ADDRESS,
    "reply_to": ADDRESS,
    "reply_to_list": [ADDRESS],
    "subject": str,
    "content": [{"type": str, "value": str}],
    "template_id": str,
    "send_at": int,
    "mail_settings": {"sandbox_mode": {"enable": bool}},
}
"""The types of the members of a mail. Other members are not checked."""
TYPE_NAMES = {
    dict: "object",
    list: "array",
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}

Fault = tuple[str, str, str | None]
"""A message, the field, and the anchor in SendGrid's page of errors."""

sendgrid = Blueprint("sendgrid", __name__)


@sendgrid.post("/v3/mail/send")
def send_mail() -> tuple[Response, int]:
    """Return 202 for an accepted mail, 200 for one in SendGrid's sandbox mode, which is only checked."""
    is_ours = is_authorized(f"Bearer {os.environ['EMAIL_API_KEY']}")
    refusals = [
        (not request.headers.get("Authorization"), 401, "Permission denied, wrong credentials"),
        (not is_ours, 401, "The provided authorization grant is invalid, expired, or revoked"),
        (not request.is_json, 415, "Content-Type should be application/json."),
        ((request.content_length or 0) > MAX_BYTES, 413, "Payload too large"),
    ]
    for is_refused, status, message in refusals:
        if is_refused:
            return _refusal(status, message)
    try:
        mail = json.loads(request.get_data())
        json.dumps(mail, ensure_ascii=False).encode()  # fails on a lone surrogate
    except (ValueError, RecursionError):
        return _refusal(400, "Bad Request")
    # Check values only if all types are right.
    if faults := list(_wrong_types(mail, SHAPE)) or list(_wrong_values(mail)):
        return _answer_faults(faults)
    if mail.get("mail_settings", {}).get("sandbox_mode", {}).get("enable"):
        return Response(), 200
    message_id = secrets.token_urlsafe(16)
    store(list(_copies(mail, message_id)))
    return Response(headers={"X-Message-Id": message_id}), 202


@sendgrid.route("/v3/mail/send", methods=["GET", "PUT", "PATCH", "DELETE"])
def refuse_method() -> tuple[Response, int]:
    response, status = _refusal(405, "method not allowed")
    response.headers["Allow"] = "POST"
    return response, status


def _wrong_types(value: Any, shape: Any, path: str = "") -> Iterator[Fault]:
    expected, given = (shape if isinstance(shape, type) else type(shape)), type(value)
    if given != expected:
        message = f"Invalid type. Expected: {TYPE_NAMES[expected]}, given: {TYPE_NAMES[given]}."
        yield message, path or "(root)", None
    elif isinstance(shape, list):
        for index, item in enumerate(value):
            yield from _wrong_types(item, shape[0], f"{path}.{index}")
    elif isinstance(shape, dict):
        for name, member in shape.items():
            if name in value:
                yield from _wrong_types(value[name], member, f"{path}.{name}".lstrip("."))


def _wrong_values(mail: dict[str, Any]) -> Iterator[Fault]:
    personalizations = mail.get("personalizations", [])
    if not personalizations:
        message = "The personalizations field is required and must have at least one personalization."
        yield message, "personalizations", "-Personalizations-Errors"
    if sum(len(_recipients(each)) for each in personalizations) > MAX_RECIPIENTS:
        message = f"There is a limit of {MAX_RECIPIENTS} total recipients (to + cc + bcc) per request."
        yield message, "personalizations", "message.recipient-errors"
    else:
        for index, each in enumerate(personalizations):
            yield from _wrong_personalization(each, f"personalizations.{index}", mail)
    yield from _wrong_senders(mail)
    has_subjects = personalizations and all(each.get("subject") for each in personalizations)
    if not mail.get("subject") and not mail.get("template_id") and not has_subjects:
        message = (
            "The subject is required. You can get around this requirement if you use a template with a subject "
            "defined or if every personalization has a subject defined."
        )
        yield message, "subject", "message.subject"
    yield from _wrong_content(mail)
    yield from _wrong_time(mail, "send_at")


def _wrong_personalization(personalization: dict[str, Any], path: str, mail: dict[str, Any]) -> Iterator[Fault]:
    if not personalization.get("to"):
        message = (
            "The to array is required for all personalization objects, and must have at least one email object with a "
            "valid email address."
        )
        yield message, f"{path}.to", "message.personalizations.to"
    seen: set[str] = set()
    for kind, index, email in _recipients(personalization):
        if not _is_address(email) or email.endswith(REFUSED_DOMAIN):
            message = "Does not contain a valid address."
            yield message, f"{path}.{kind}.{index}.email", f"message.personalizations.{kind}"
        elif email.casefold() in seen:
            message = (
                "Each email address in the personalization block should be unique between to, cc, and bcc. We found "
                f"the first duplicate instance of [{email}] in the {path}.{kind} field."
            )
            yield message, path, "message.recipient-errors"
            break
        seen.add(email.casefold())
    if personalization.get("substitutions") and mail.get("template_id", "").startswith("d-"):
        message = "Substitutions may not be used with dynamic templating"
        yield message, f"{path}.substitutions", "message.personalizations.substitutions"
    if "from" in personalization and not _is_address(personalization["from"].get("email", "")):
        yield "The from email does not contain a valid address.", f"{path}.from.email", "message.from"
    yield from _wrong_time(personalization, f"{path}.send_at")


def _wrong_senders(mail: dict[str, Any]) -> Iterator[Fault]:
    sender = mail.get("from", {}).get("email")
    if not sender:
        message = (
            "The from object must be provided for every email send. It is an object that requires the email "
            'parameter, but may also contain a name parameter.  e.g. {"email" : "example@example.com"}  or '
            '{"email" : "example@example.com", "name" : "Example Recipient"}.'
        )
        yield message, "from.email", "message.from"
    elif not _is_address(sender):
        yield "The from email does not contain a valid address.", "from.email", "message.from"
    if "reply_to" in mail and "reply_to_list" in mail:
        yield "Cannot use reply_to together with reply_to_list.", "reply_to_list", "message.reply_to_list"
    if "reply_to" in mail and not _is_address(mail["reply_to"].get("email", "")):
        yield "The reply_to email does not contain a valid address.", "reply_to.email", "message.reply_to"
    for index, each in enumerate(mail.get("reply_to_list", [])):
        if not _is_address(each.get("email", "")):
            message = "The reply_to_list email does not contain a valid address."
            yield message, f"reply_to_list.{index}.email", "message.reply_to_list"


def _wrong_content(mail: dict[str, Any]) -> Iterator[Fault]:
    template = mail.get("template_id")
    is_template = re.fullmatch("(?i)d-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", template or "")
    if template is not None and not is_template:
        message = f"The template_id must be a valid GUID, you provided '{template}'."
        yield message, "template_id", "message.template_id"
    content = mail.get("content", [])
    if not content and not is_template:
        message = (
            "Unless a valid template_id is provided, the content parameter is required. There must be at least one "
            "defined content block. We typically suggest both text/plain and text/html blocks are included, but only "
            "one block is required."
        )
        yield message, "content", "message.content"
    for index, each in enumerate(content):
        if not each.get("type"):
            message = "The content type must be a string at least one character in length."
            yield message, f"content.{index}.type", "message.content.type"
        elif re.search("[;\r\n]", each["type"]):
            message = "The content type cannot contain ';', or CRLF characters."
            yield message, f"content.{index}.type", "message.content.type"
        if not each.get("value"):
            message = "The content value must be a string at least one character in length."
            yield message, f"content.{index}.value", "message.content.value"
    ranks = [{"text/plain": 0, "text/html": 1}.get(each.get("type", ""), 2) for each in content]
    if ranks != sorted(ranks):
        message = (
            "Following RFC 1341, section 7.2, if either text/html or text/plain are to be sent in your email: "
            "text/plain needs to be first, followed by text/html, followed by any other content."
        )
        yield message, "content", "message.content.value"
    elif ranks.count(0) > 1 or ranks.count(1) > 1:
        yield "If present, text/plain and text/html may only be provided once.", "content", "message.content"


def _wrong_time(holder: dict[str, Any], path: str) -> Iterator[Fault]:
    if holder.get("send_at", 0) > time.time() + MAX_AHEAD_SECONDS:
        yield "Scheduling more than 72 hours in advance is forbidden.", path, "message.send_at"


def _is_address(text: str) -> bool:
    from email_validator import EmailNotValidError, validate_email

    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _recipients(personalization: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Return each recipient with its list and its index there."""
    return [
        (kind, index, each.get("email", ""))
        for kind in ("to", "cc", "bcc")
        for index, each in enumerate(personalization.get(kind, []))
    ]


def _copies(mail: dict[str, Any], message_id: str) -> Iterator[Message]:
    contents = {each["type"]: each["value"] for each in mail.get("content", [])}
    for personalization in mail["personalizations"]:
        recipients = _recipients(personalization)
        data = personalization.get("dynamic_template_data", {})
        for _, _, to in recipients:
            yield {
                "id": message_id,
                "channel": "email",
                "from": personalization.get("from", mail["from"])["email"],
                "to": to,
                "cc": [email for kind, _, email in recipients if kind == "cc"],
                "bcc": [email for kind, _, email in recipients if kind == "bcc"],
                # SendGrid has the template itself, so show its name and data.
                "subject": personalization.get("subject") or mail.get("subject") or f"Template {mail['template_id']}",
                "text": contents.get("text/plain", "") if contents else json.dumps(data, ensure_ascii=False, indent=2),
                "html": contents.get("text/html", ""),
                "sent_at": now(),
            }


def _refusal(status: int, message: str) -> tuple[Response, int]:
    return jsonify(errors=[{"message": message, "field": None, "help": None}]), status


def _answer_faults(faults: list[Fault]) -> tuple[Response, int]:
    errors = [
        {"message": message, "field": field, "help": HELP + anchor if anchor else None}
        for message, field, anchor in faults
    ]
    return jsonify(errors=errors), 400
