"""Call functions on a restored database, without a network: python -m knative.operations.backup.calls

Exits with 1 and the first wrong answer. It changes data, so use it only on a scratch database.
"""

import secrets
import sys
import time
from datetime import timedelta
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import select, update

from shared.framework.registry import HTTP_FUNCTIONS
from shared.framework.server import create_app
from shared.http.clients import Client
from shared.identity import sessions, verifications
from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction

RESTORED = 20
"""How many users of the backup get their profile read."""
TRIES = 10
"""Tries per call. A server that has just restored a backup is busy and can answer 503."""
HERE = Client("127.0.0.1", "drill")


def main() -> None:
    with transaction() as connection:
        users = connection.execute(
            select(account.c.id, account.c.email)
            .where(account.c.status == "active")
            .order_by(account.c.id)
            .limit(RESTORED)
        ).all()
    for user in users:
        if _call("get_profile", 200, _session(user.id))["email"] != user.email:
            sys.exit("get_profile shows an address that differs from the account's")
    _as_a_new_user()
    print(f"{len(_clients)} functions answered as they should on it, for a new user and {len(users)} of the backup.")


def _as_a_new_user() -> None:
    address, password = f"drill-{secrets.token_hex(8)}@example.com", secrets.token_hex(16)
    _call("register", 202, body={"email": address, "password": password, "name": "Drill"})
    with transaction() as connection:
        user_id = connection.scalars(select(account.c.id).where(account.c.canonical_email == address)).one()
        token = verifications.create(connection, user_id, verifications.VERIFY_EMAIL, timedelta(hours=1))
    _call("verify_email", 204, body={"token": token, "password": password})
    tokens = _call("login", 200, body={"email": address, "password": password})
    _call("update_profile", 200, tokens, {"name": "A new name"})
    if _call("get_profile", 200, tokens)["name"] != "A new name":
        sys.exit("get_profile does not show the new name")
    tokens = _call("refresh_token", 200, body={"refresh_token": tokens["refresh_token"]})
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == user_id).values(roles=["admin"]))
    found = _call("list_users", 200, _session(user_id, "pwd", "otp", "mfa"), query={"email": address})
    if [user["id"] for user in found["users"]] != [str(user_id)]:
        sys.exit("list_users does not find an existing user")
    _call("logout", 204, tokens)
    _call("get_profile", 401, tokens)


def _session(user_id: Any, *amr: str) -> Any:
    with transaction() as connection:
        return sessions.log_in(connection, user_id, amr or ("pwd",), HERE)


def _call(function: str, status: int, tokens: Any = None, body: Any = None, query: Any = None) -> Any:
    """Call an operation, check its status and return its JSON."""
    client = _clients.get(function) or _clients.setdefault(function, create_app(function).test_client())
    operation = HTTP_FUNCTIONS[function]
    headers = {"Authorization": f"Bearer {tokens['access_token']}"} if tokens else {}
    for _ in range(TRIES):
        answer = client.open(operation.path, method=operation.method, json=body, query_string=query, headers=headers)
        if answer.status_code != 503:
            break
        time.sleep(int(answer.headers["Retry-After"]))
    if answer.status_code != status:
        sys.exit(f"{function} answers {answer.status_code} instead of {status}: {answer.text[:300]}")
    return answer.get_json(silent=True)


_clients: dict[str, FlaskClient] = {}


if __name__ == "__main__":
    main()
