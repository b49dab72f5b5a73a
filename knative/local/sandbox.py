"""The providers of development: they take mails as SendGrid does, deliver nothing, and show all in an inbox.

DATA_DIR=/data EMAIL_API_KEY=... python -m knative.local.sandbox
"""

import hmac
import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from flask import Blueprint, Flask, Response, jsonify, render_template, request

from shared.server import Server

KEPT = 1000
"""So many messages are kept; older ones are forgotten."""

sandbox = Blueprint("sandbox", __name__)


class Message(TypedDict):
    """A mail or a text message that was sent."""

    channel: str
    to: str
    subject: str
    text: str
    html: str
    sent_at: str


@sandbox.post("/v3/mail/send")
def send_mail() -> tuple[Response, int]:
    """SendGrid's API v3: 202 for a mail that is taken, its own form of errors otherwise."""
    expected = f"Bearer {os.environ['EMAIL_API_KEY']}"
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode()):
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
                sent_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            for personalization in mail["personalizations"]
            for recipient in personalization["to"]
        ]
    except (KeyError, TypeError):
        return _refusal("Bad Request", "personalizations, from, subject or content"), 400
    if not sender or not messages:
        return _refusal("The from address and a recipient are required", "from"), 400
    store(messages)
    return Response(), 202


@sandbox.get("/inbox")
def show_inbox() -> Response | str:
    """The messages, newest first: a page, or with `Accept: application/json` a list of objects.

    With `?to=ADDRESS` only those to an address.
    """
    found = messages(request.args.get("to"))
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        return jsonify(found)
    return render_template("inbox.html", messages=found)


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


def _refusal(message: str, field: str | None) -> Response:
    return jsonify(errors=[{"message": message, "field": field, "help": None}])


if __name__ == "__main__":
    app = Flask(__name__)
    app.register_blueprint(sandbox)
    Server(app, bind="0.0.0.0:8080", threads=4, log_level="INFO").run()
