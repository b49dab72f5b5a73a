"""What schemathesis calls: each request comes from a new administrator, in a session with a second factor.

New, because operations log out, withdraw and suspend: what one request did must not decide about the next.
"""

from functools import cache
from typing import Any
from uuid import UUID

import schemathesis
from sqlalchemy import insert
from uuid_utils.compat import uuid7

from shared.http.clients import Client
from shared.identity import sessions
from shared.identity.passwords import hash_password
from shared.postgresql.tables import account, credential
from shared.postgresql.transactions import transaction
from tests.conftest import PASSWORD


@schemathesis.auth(refresh_interval=None)
class NewAdministrator:
    def get(self, _case: schemathesis.Case[Any], _context: schemathesis.AuthContext) -> str:
        user_id = uuid7()
        with transaction() as connection:
            connection.execute(insert(account).values(**_account(user_id), roles=["admin"]))
            connection.execute(insert(credential).values(account_id=user_id, password_hash=_password_hash()))
            tokens = sessions.log_in(connection, user_id, ["pwd", "otp", "mfa"], Client("127.0.0.1", "contract"))
        assert tokens
        return tokens["access_token"]

    def set(self, case: schemathesis.Case[Any], token: str, _context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {token}"


def _account(user_id: UUID) -> dict[str, Any]:
    address = f"{user_id.hex}@example.com"
    return {"id": user_id, "email": address, "canonical_email": address, "locale": "ko", "status": "active"}


@cache
def _password_hash() -> str:
    return hash_password(PASSWORD)
