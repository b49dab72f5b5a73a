"""The messages that the sandbox accepted in place of the providers, and the check of its callers' credentials.

Messages live in DATA_DIR/inbox.sqlite3. Nothing leaves this machine.
"""

import hmac
import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from flask import request

KEPT = 1000
"""How many messages are kept; older ones are deleted."""

Message = TypedDict(
    "Message",
    {
        "id": str,  # SendGrid's X-Message-Id, which all copies of one mail share, or Twilio's sid
        "channel": str,  # email or sms
        "from": str,
        "to": str,  # who gets this copy: each of a mail's to, cc and bcc has one
        "cc": list[str],
        "bcc": list[str],
        "subject": str,
        "text": str,
        "html": str,
        "sent_at": str,  # RFC 3339, in UTC
    },
)


def is_authorized(expected: str) -> bool:
    """Return whether the request has this Authorization header."""
    return hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def store(messages: list[Message]) -> None:
    with closing(_database()) as database, database:
        database.executemany(
            "INSERT INTO message (recipient, content) VALUES (?, ?)",
            [(message["to"], json.dumps(message)) for message in messages],
        )
        database.execute("DELETE FROM message WHERE id <= (SELECT max(id) FROM message) - ?", (KEPT,))


def messages(to: str | None = None) -> list[Message]:
    """Return all messages, or only those to an address, newest first."""
    query = "SELECT content FROM message WHERE :to IS NULL OR recipient = :to ORDER BY id DESC"
    with closing(_database()) as database:
        rows = database.execute(query, {"to": to}).fetchall()
    return [json.loads(content) for (content,) in rows]


def _database() -> sqlite3.Connection:
    file = Path(os.environ["DATA_DIR"]) / "inbox.sqlite3"
    file.touch(mode=0o600)  # it contains valid links
    database = sqlite3.connect(file)
    database.execute(
        "CREATE TABLE IF NOT EXISTS message "
        "(id INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, content TEXT NOT NULL)"
    )
    return database
