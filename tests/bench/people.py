"""Users with a session each, and their requests."""

import itertools
import json
import time
import uuid
from dataclasses import dataclass
from ipaddress import IPv4Address

from sqlalchemy import func, insert

from shared.identity import access_tokens, sessions
from shared.identity.access_tokens import Caller
from shared.identity.passwords import hash_password
from shared.identity.tokens import new_token
from shared.postgresql.tables import account, credential, refresh_token, session
from shared.postgresql.transactions import transaction

PASSWORD = "copper lantern drifts north"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Person:
    id: uuid.UUID
    email: str
    address: str
    """An address that nobody else uses, so that no per-address limit is reached."""
    access_token: str = ""
    """Valid for ten minutes; empty without an account."""
    refresh_token: str = ""

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """Return a request as a gateway forwards it (RFC 9112)."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: 127.0.0.1",
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            "Accept: application/json",
            f"X-Forwarded-For: {self.address}",
            *([f"Authorization: Bearer {self.access_token}"] if self.access_token else []),
            *(["Content-Type: application/json", f"Content-Length: {len(content)}"] if content else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + content


def strangers(count: int) -> list[Person]:
    """Return this many people without an account."""
    return [
        Person(user_id := uuid.uuid4(), f"{user_id.hex}@example.com", str(IPv4Address("10.0.0.0") + next(_numbers)))
        for _ in range(count)
    ]


def users(count: int, *, roles: tuple[str, ...] = ()) -> list[Person]:
    """Create this many users who have just logged in, with the same password. With roles, they used a second factor."""
    now = int(time.time())
    amr = ("pwd", "otp", "mfa") if roles else ("pwd",)
    people, callers = [], []
    for one in strangers(count):
        caller = Caller(user_id=one.id, session_id=uuid.uuid4(), roles=roles, amr=amr, authenticated_at=now)
        people.append(Person(one.id, one.email, one.address, access_tokens.issue(caller), new_token()))
        callers.append(caller)
    password_hash = hash_password(PASSWORD)
    with transaction() as connection:
        connection.execute(
            insert(account).values(name="김민준", locale="ko", status="active", roles=list(roles)),
            [{"id": one.id, "email": one.email, "canonical_email": one.email} for one in people],
        )
        connection.execute(
            insert(credential), [{"account_id": one.id, "password_hash": password_hash} for one in people]
        )
        connection.execute(
            insert(session).values(expires_at=func.now() + sessions.LIFETIME),
            [{"id": caller.session_id, "account_id": caller.user_id} for caller in callers],
        )
        connection.execute(
            insert(refresh_token),
            [
                {"token_hash": sessions.hash_refresh_token(one.refresh_token), "session_id": caller.session_id}
                for one, caller in zip(people, callers, strict=True)
            ],
        )
    return people
