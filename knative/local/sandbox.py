"""The providers for development: SendGrid's mails (sendgrid.py) and Twilio's texts (twilio.py), shown in an inbox and
never delivered, and the business registry of the National Tax Service.

DATA_DIR=/data EMAIL_API_KEY=... SMS_API_KEY=SID:TOKEN BUSINESS_REGISTRY_API_KEY=... python -m knative.local.sandbox

The address decides what happens to a mail:

    any at refused.example.com    is refused, like an address that SendGrid rejects
    any other valid one           is delivered

The number decides what happens to a text, as with Twilio's test credentials:

    +15005550001       is not a valid number (21211)
    +15005550002       cannot be reached (21612)
    +15005550003       is in a region that is not enabled (21408)
    +15005550004       has opted out (21610)
    +15005550009       cannot receive texts (21614)
    any other valid    gets the text

The last digit of a business number decides what the registry knows, whatever else is stated:

    0 to 4    as stated, active (101-01-00014)
    5         as stated, active; but closed in a query for its state, as if it closed a day later (101-01-00085)
    6         with another date or representative than stated (101-01-00066)
    7         as stated, suspended (101-01-00047)
    8         as stated, closed (101-01-00028)
    9         not registered (101-01-00159)
"""

import os
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, render_template, request

from knative.local.inbox import is_authorized, messages
from knative.local.sendgrid import sendgrid
from knative.local.twilio import twilio
from shared.framework.server import Server
from shared.runtime.settings import load

SHOWN = 50
"""How many messages the page shows."""

sandbox = Blueprint("sandbox", __name__)
sandbox.register_blueprint(sendgrid)
sandbox.register_blueprint(twilio)

ACTIVE, SUSPENDED, CLOSED, UNREGISTERED = "01", "02", "03", ""
MAX_BUSINESSES = 100
_STATES = {ACTIVE: "계속사업자", SUSPENDED: "휴업자", CLOSED: "폐업자", UNREGISTERED: ""}


@sandbox.post("/api/nts-businessman/v1/validate")
def validate_businesses() -> tuple[Response, int]:
    """Return whether businesses are registered as stated, and the state of those that are."""
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
    """Return the states of businesses."""
    if refusal := _registry_refusal("b_no"):
        return refusal
    data = [_state(number, _state_code(number)) for number in request.get_json()["b_no"]]
    return _registry_answer(data, "match_cnt", sum(bool(item["b_stt_cd"]) for item in data)), 200


@sandbox.get("/inbox")
def show_inbox() -> Response | str:
    """Return the messages, newest first: a page with the newest, or all as JSON with `Accept: application/json`.

    `?to=ADDRESS` selects those to an address.
    """
    to = request.args.get("to")
    found = messages(to)
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        return jsonify(found)
    return render_template("inbox.html", messages=found[:SHOWN], to=to)


def _registry_refusal(name: str) -> tuple[Response, int] | None:
    """Return the answer of the registry or its gateway to a request that it refuses.

    name: the list that the request must contain.
    """
    if not request.headers.get("Authorization"):
        return jsonify(code=-401, msg="인증키는 필수 항목 입니다."), 401
    if not is_authorized(f"Infuser {os.environ['BUSINESS_REGISTRY_API_KEY']}"):
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
    # The registry omits a count of zero.
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
    Server(app, bind="0.0.0.0:8080", settings=load(os.environ)).run()
