"""A profile by its id, with only Flask and pg8000: one transaction, one connection per thread."""

import os
import threading
from urllib.parse import urlsplit
from uuid import UUID

import pg8000.dbapi
from flask import Flask

SELECT = """
    SELECT account.id, account.email, new_email, name, locale, phone, roles, account.created_at,
           business.number, business.status, business.reason, totp.confirmed_at
    FROM account
    LEFT JOIN business ON business.account_id = account.id
    LEFT JOIN totp ON totp.account_id = account.id
    WHERE account.id = %s
"""

app = Flask(__name__)
_of_thread = threading.local()


@app.get("/<uuid:user_id>")
def profile(user_id: UUID) -> list[str]:
    if not hasattr(_of_thread, "connection"):
        url = urlsplit(os.environ["DATABASE_URL"])
        _of_thread.connection = pg8000.dbapi.connect(
            url.username, url.hostname, url.path[1:], url.port, url.password, ssl_context=False
        )
    cursor = _of_thread.connection.cursor()
    cursor.execute(SELECT, (user_id,))  # after a BEGIN of pg8000's own
    row = cursor.fetchone()
    _of_thread.connection.commit()
    return [str(column) for column in row]
