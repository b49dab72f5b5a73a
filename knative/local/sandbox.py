"""The providers of development: they take mails as SendGrid does and texts as Twilio does, deliver nothing, and show
all in an inbox; and they answer as the business registry of the National Tax Service does.

DATA_DIR=/data EMAIL_API_KEY=... SMS_API_KEY=SID:TOKEN BUSINESS_REGISTRY_API_KEY=... python -m knative.local.sandbox

What becomes of a mail is decided by its address:

    any at refused.example.com    is refused, as an address that SendGrid does not take
    any other                     is delivered

What becomes of a text is decided by its number, as with Twilio's test credentials:

    +15005550001    is no number (21211)
    +15005550004    has opted out (21610)
    +15005550009    cannot get texts (21614)
    any other       is texted

What the registry knows of a business is decided by the last digit of its number, whatever else is stated:

    0 to 4    as stated, active (101-01-00014)
    5         as stated, active; closed when only its state is asked, as it is from the next day on (101-01-00085)
    6         of another date or representative than stated (101-01-00066)
    7         as stated, suspended (101-01-00047)
    8         as stated, closed (101-01-00028)
    9         not registered (101-01-00159)
"""

import base64
import hmac
import json
import os
import secrets
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from flask import Blueprint, Flask, Response, jsonify, render_template, request

from shared.server import Server

KEPT = 1000
"""So many messages are kept; older ones are forgotten."""
SHOWN = 50
"""So many of them the page shows."""

sandbox = Blueprint("sandbox", __name__)


class Message(TypedDict):
    """A mail or a text message that was sent."""

    channel: str
    to: str
    subject: str
    text: str
    html: str
    sent_at: str


REFUSED_DOMAIN = "@refused.example.com"


@sandbox.post("/v3/mail/send")
def send_mail() -> tuple[Response, int]:
    """SendGrid's API v3: 202 for a mail that is taken, its own form of errors otherwise."""
    if not _is_authorized(f"Bearer {os.environ['EMAIL_API_KEY']}"):
        return _refusal("The provided authorization grant is invalid, expired, or revoked", None), 401
    mail: Any = request.get_json(silent=True)
    try:
        contents = {content["type"]: content["value"] for content in mail["content"]}
        sender = mail["from"]["email"]
        messages = [
            Message(
                channel="email",
                to=recipient["email"],
                subject=mail["subject"],
                text=contents.get("text/plain", ""),
                html=contents.get("text/html", ""),
                sent_at=_now(),
            )
            for personalization in mail["personalizations"]
            for recipient in personalization["to"]
        ]
    except (KeyError, TypeError):
        return _refusal("Bad Request", "personalizations, from, subject or content"), 400
    if not sender or not messages:
        return _refusal("The from address and a recipient are required", "from"), 400
    if any(message["to"].endswith(REFUSED_DOMAIN) for message in messages):
        return _refusal("Does not contain a valid address.", "personalizations.0.to.0.email"), 400
    store(messages)
    return Response(), 202


REFUSED_NUMBERS = {
    "+15005550001": (21211, "Invalid 'To' Phone Number"),
    "+15005550004": (21610, "Attempt to send to unsubscribed recipient"),
    "+15005550009": (21614, "'To' number is not a valid mobile number"),
}


@sandbox.post("/2010-04-01/Accounts/<sid>/Messages.json")
def send_text(sid: str) -> tuple[Response, int]:
    """Twilio's API of 2010: 201 for a text that is queued, its own form of errors otherwise."""
    credentials = os.environ["SMS_API_KEY"]
    is_ours = _is_authorized("Basic " + base64.b64encode(credentials.encode()).decode())
    if not is_ours or sid != credentials.partition(":")[0]:
        return _twilio_error(401, 20003, "Authenticate")
    message = {name: request.form.get(name, "") for name in ("To", "From", "Body")}
    for name, code in {"To": 21604, "From": 21603, "Body": 21602}.items():
        if not message[name]:
            return _twilio_error(400, code, f"A '{name}' is required")
    if not request.form.get("ValidityPeriod", "1").isdigit():
        return _twilio_error(400, 21624, "Invalid validity period value")
    if message["To"] in REFUSED_NUMBERS:
        return _twilio_error(400, *REFUSED_NUMBERS[message["To"]])
    store([Message(channel="sms", to=message["To"], subject="", text=message["Body"], html="", sent_at=_now())])
    answer = {"to": message["To"], "from": message["From"], "body": message["Body"]}
    return jsonify(sid=f"SM{secrets.token_hex(16)}", account_sid=sid, status="queued", error_code=None, **answer), 201


ACTIVE, SUSPENDED, CLOSED, UNREGISTERED = "01", "02", "03", ""
MAX_BUSINESSES = 100
_STATES = {ACTIVE: "계속사업자", SUSPENDED: "휴업자", CLOSED: "폐업자", UNREGISTERED: ""}


@sandbox.post("/api/nts-businessman/v1/validate")
def validate_businesses() -> tuple[Response, int]:
    """Whether businesses are registered as stated, and the state of those that are."""
    if refusal := _registry_refusal("businesses"):
        return refusal
    data = []
    for stated in request.get_json()["businesses"]:
        if not all(stated.get(name) for name in ("b_no", "start_dt", "p_nm")):
            return jsonify(status_code="REQUEST_DATA_MALFORMED"), 411
        number, found = stated["b_no"], {"b_no": stated["b_no"], "request_param": stated}
        if number[-1] in "69":
            data.append(found | {"valid": "02", "valid_msg": "확인할 수 없습니다."})
        else:
            code = ACTIVE if number[-1] == "5" else _state_code(number)
            data.append(found | {"valid": "01", "status": _state(number, code)})
    return _registry_answer(data, "valid_cnt", sum(item["valid"] == "01" for item in data)), 200


@sandbox.post("/api/nts-businessman/v1/status")
def show_states() -> tuple[Response, int]:
    """The states of businesses."""
    if refusal := _registry_refusal("b_no"):
        return refusal
    data = [_state(number, _state_code(number)) for number in request.get_json()["b_no"]]
    return _registry_answer(data, "match_cnt", sum(bool(item["b_stt_cd"]) for item in data)), 200


@sandbox.get("/inbox")
def show_inbox() -> Response | str:
    """The messages, newest first: a page of the newest, or with `Accept: application/json` a list of all.

    With `?to=ADDRESS` only those to an address.
    """
    found = messages(request.args.get("to"))
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        return jsonify(found)
    return render_template("inbox.html", messages=found[:SHOWN])


def store(messages: list[Message]) -> None:
    with closing(_database()) as database, database:
        database.executemany(
            "INSERT INTO message (recipient, content) VALUES (?, ?)",
            [(message["to"], json.dumps(message)) for message in messages],
        )
        database.execute("DELETE FROM message WHERE id <= (SELECT max(id) FROM message) - ?", (KEPT,))


def messages(to: str | None = None) -> list[Message]:
    query = "SELECT content FROM message WHERE :to IS NULL OR recipient = :to ORDER BY id DESC"
    with closing(_database()) as database:
        rows = database.execute(query, {"to": to}).fetchall()
    return [json.loads(content) for (content,) in rows]


def _database() -> sqlite3.Connection:
    file = Path(os.environ["DATA_DIR"]) / "inbox.sqlite3"
    file.touch(mode=0o600)  # it holds live links
    database = sqlite3.connect(file)
    database.execute(
        "CREATE TABLE IF NOT EXISTS message "
        "(id INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, content TEXT NOT NULL)"
    )
    return database


def _is_authorized(expected: str) -> bool:
    return hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _refusal(message: str, field: str | None) -> Response:
    return jsonify(errors=[{"message": message, "field": field, "help": None}])


def _twilio_error(status: int, code: int, message: str) -> tuple[Response, int]:
    more = f"https://www.twilio.com/docs/errors/{code}"
    return jsonify(code=code, message=message, more_info=more, status=status), status


def _registry_refusal(name: str) -> tuple[Response, int] | None:
    """What the registry, or the gateway before it, says of a request that it does not take.

    name: of the list that the request must hold.
    """
    if not request.headers.get("Authorization"):
        return jsonify(code=-401, msg="인증키는 필수 항목 입니다."), 401
    if not _is_authorized(f"Infuser {os.environ['BUSINESS_REGISTRY_API_KEY']}"):
        return jsonify(code=-4, msg="등록되지 않은 인증키 입니다."), 401
    question: Any = request.get_json(silent=True)
    if not isinstance(question, dict):
        return jsonify(status_code="BAD_JSON_REQUEST"), 400
    asked = question.get(name)
    kind = str if name == "b_no" else dict
    if not isinstance(asked, list) or not asked or not all(isinstance(each, kind) and each for each in asked):
        return jsonify(status_code="REQUEST_DATA_MALFORMED"), 411
    if len(asked) > MAX_BUSINESSES:
        return jsonify(status_code="TOO_LARGE_REQUEST"), 413
    return None


def _registry_answer(data: list[Any], count: str, found: int) -> Response:
    # The registry leaves out a count of none.
    return jsonify(request_cnt=len(data), status_code="OK", data=data, **({count: found} if found else {}))


def _state_code(number: str) -> str:
    return {"5": CLOSED, "7": SUSPENDED, "8": CLOSED, "9": UNREGISTERED}.get(number[-1], ACTIVE)


def _state(number: str, code: str) -> dict[str, str]:
    unregistered = "국세청에 등록되지 않은 사업자등록번호입니다."
    return {
        "b_no": number,
        "b_stt": _STATES[code],
        "b_stt_cd": code,
        "tax_type": "부가가치세 일반과세자" if code else unregistered,
        "tax_type_cd": "01" if code else "",
        "end_dt": "20240131" if code == CLOSED else "",
        "utcc_yn": "N" if code else "",
        "tax_type_change_dt": "",
        "invoice_apply_dt": "",
        "rbf_tax_type": "해당없음" if code else "",
        "rbf_tax_type_cd": "99" if code else "",
    }


if __name__ == "__main__":
    app = Flask(__name__)
    app.register_blueprint(sandbox)
    Server(app, bind="0.0.0.0:8080", workers=1, threads=4, log_level="INFO").run()
