"""The requests to each function with significant load, as its pod receives them. Each can be used once."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pyotp
from sqlalchemy import func, insert, select, update

from functions.login_with_passkey import AMR
from shared.events.types import SOURCE, Event, PhoneCodeRequested, UserRegistered
from shared.identity import access_tokens, authentication, challenges, verifications
from shared.identity.access_tokens import Caller
from shared.identity.second_factors import SECRET_BYTES, seal_secret
from shared.postgresql.tables import account, phone_verification, session, totp
from shared.postgresql.transactions import transaction
from shared.users import profiles
from shared.users.phone_numbers import hash_phone_code
from tests.bench.people import PASSWORD, Person, strangers, users

USERS = "/api/v1/users"
READERS = 300
"""Cached profiles. Each is read several times within its minute in the cache."""
CODE = "123456"


def _signed_in(count: int, *, roles: tuple[str, ...] = ()) -> list[Person]:
    """Return users whose sessions are cached, as if they had just read their profile."""
    people = users(count, roles=roles)
    for one in people:
        authentication.has_session(access_tokens.verify(one.access_token), None)
    return people


def _get_profile(count: int) -> list[bytes]:
    readers = _signed_in(min(count, READERS))
    with transaction() as connection:
        found = [profiles.read(connection, one.id) for one in readers]
    for profile in found:
        assert profile
        profiles.put_if_absent(profile)
    requests = [one.request("GET", f"{USERS}/me") for one in readers]
    return (requests * (count // len(requests) + 1))[:count]


def _get_profile_missed(count: int) -> list[bytes]:
    return [one.request("GET", f"{USERS}/me") for one in _signed_in(count)]


def _login(count: int) -> list[bytes]:
    return [one.request("POST", f"{USERS}/login", {"email": one.email, "password": PASSWORD}) for one in users(count)]


def _login_with_second_factor(count: int) -> list[bytes]:
    people, secret = users(count), bytes(SECRET_BYTES)
    with transaction() as connection:
        connection.execute(
            insert(totp).values(created_at=func.now(), confirmed_at=func.now()),
            [{"account_id": one.id, "secret": seal_secret(one.id, secret)} for one in people],
        )
        tokens = [challenges.create(connection, challenges.SECOND_FACTOR, one.id) for one in people]
    code = pyotp.TOTP("A" * 32).now()  # the same 160 bits in Base32
    return [
        one.request("POST", f"{USERS}/login/second-factor", {"challenge": token, "code": code})
        for one, token in zip(people, tokens, strict=True)
    ]


def _refresh_token(count: int) -> list[bytes]:
    return [one.request("POST", f"{USERS}/token/refresh", {"refresh_token": one.refresh_token}) for one in users(count)]


def _register(count: int) -> list[bytes]:
    return [one.request("POST", USERS, {"email": one.email, "password": PASSWORD}) for one in strangers(count)]


def _pending(count: int) -> list[Person]:
    people = users(count)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id.in_([one.id for one in people])).values(status="pending"))
    return people


def _request_email_verification(count: int) -> list[bytes]:
    return [one.request("POST", f"{USERS}/email/resend", {"email": one.email}) for one in _pending(count)]


def _verify_email(count: int) -> list[bytes]:
    people = _pending(count)
    with transaction() as connection:
        tokens = [
            verifications.create(connection, one.id, verifications.VERIFY_EMAIL, timedelta(days=1)) for one in people
        ]
    return [
        one.request("POST", f"{USERS}/email/verify", {"token": token, "password": PASSWORD})
        for one, token in zip(people, tokens, strict=True)
    ]


def _logout(count: int) -> list[bytes]:
    return [one.request("POST", f"{USERS}/logout") for one in _signed_in(count)]


def _update_profile(count: int) -> list[bytes]:
    return [one.request("PATCH", f"{USERS}/me", {"name": "이서연"}) for one in _signed_in(count)]


def _list_sessions(count: int) -> list[bytes]:
    return [one.request("GET", f"{USERS}/me/sessions") for one in _signed_in(count)]


def _revoke_session(count: int) -> list[bytes]:
    people, others = _signed_in(count), [uuid.uuid4() for _ in range(count)]
    with transaction() as connection:
        connection.execute(
            insert(session).values(expires_at=func.now() + timedelta(days=30)),
            [{"id": other, "account_id": one.id} for one, other in zip(people, others, strict=True)],
        )
    return [one.request("DELETE", f"{USERS}/me/sessions/{other}") for one, other in zip(people, others, strict=True)]


def _request_phone_code(count: int) -> list[bytes]:
    return [one.request("POST", f"{USERS}/me/phone", {"phone": _phone(one)}) for one in _signed_in(count)]


def _verify_phone(count: int) -> list[bytes]:
    people = _signed_in(count)
    _ask_for_codes(people)
    return [one.request("POST", f"{USERS}/me/phone/verify", {"code": CODE}) for one in people]


def _ask_for_codes(people: list[Person]) -> None:
    with transaction() as connection:
        connection.execute(
            insert(phone_verification).values(expires_at=func.now() + timedelta(minutes=5)),
            [
                {"account_id": one.id, "phone": _phone(one), "code_hash": hash_phone_code(one.id, CODE)}
                for one in people
            ],
        )


def _phone(person: Person) -> str:
    return f"+82102{person.id.int % 10**7:07}"


def _withdraw(count: int) -> list[bytes]:
    return [one.request("POST", f"{USERS}/me/withdrawal", {"password": PASSWORD}) for one in _signed_in(count)]


def _export_data(count: int) -> list[bytes]:
    """Return exports of users who have logged in several times."""
    now = int(time.time())
    with transaction() as connection:
        found = connection.scalars(
            select(session.c.account_id)
            .join(account)
            .where(account.c.status == "active")
            .group_by(session.c.account_id)
            .having(func.count() > 2)
            .order_by(func.random())
            .limit(count)
        ).all()
        callers = [
            # Logged in with a passkey, as some users have one.
            Caller(user_id=user_id, session_id=uuid.uuid4(), amr=tuple(AMR), authenticated_at=now)
            for user_id in found
        ]
        connection.execute(
            insert(session).values(expires_at=func.now() + timedelta(days=30)),
            [{"id": caller.session_id, "account_id": caller.user_id} for caller in callers],
        )
    people = [
        replace(one, access_token=access_tokens.issue(caller))
        for one, caller in zip(strangers(len(callers)), callers, strict=True)
    ]
    return [one.request("GET", f"{USERS}/me/export") for one in people]


def _hello(count: int) -> list[bytes]:
    return [one.request("GET", "/") for one in strangers(count)]


def _jwks(count: int) -> list[bytes]:
    return [one.request("GET", "/.well-known/jwks.json") for one in strangers(count)]


def _list_users(count: int) -> list[bytes]:
    """Return typical searches of administrators: by the start of a name or address, or by status."""
    searches = (f"name={quote('김민')}", "email=minjun.kim", "status=suspended")
    return [
        one.request("GET", f"{USERS}?{searches[number % len(searches)]}")
        for number, one in enumerate(_signed_in(count, roles=("admin",)))
    ]


def _get_user(count: int) -> list[bytes]:
    return _of_others(count, "")


def _list_audit(count: int) -> list[bytes]:
    return _of_others(count, "/audit")


def _of_others(count: int, path: str) -> list[bytes]:
    with transaction() as connection:
        others = connection.scalars(select(account.c.id).order_by(func.random()).limit(count)).all()
    return [
        one.request("GET", f"{USERS}/{other}{path}")
        for one, other in zip(_signed_in(len(others), roles=("admin",)), others, strict=True)
    ]


def _send_email(count: int) -> list[bytes]:
    return [_delivery(UserRegistered(user_id=one.id, locale="ko")) for one in _pending(count)]


def _send_sms(count: int) -> list[bytes]:
    people = users(count)
    _ask_for_codes(people)
    return [_delivery(PhoneCodeRequested(user_id=one.id)) for one in people]


def _delivery(event: Event) -> bytes:
    """Return an event as the dispatcher delivers it (CloudEvents over HTTP, binary mode)."""
    content = event.model_dump_json().encode()
    lines = [
        "POST / HTTP/1.1",
        "Host: 127.0.0.1",
        "ce-specversion: 1.0",
        f"ce-id: {uuid.uuid4()}",
        f"ce-source: {SOURCE}",
        f"ce-type: {event.type}",
        f"ce-subject: {event.user_id}",
        f"ce-time: {datetime.now(UTC).isoformat()}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


TRAFFIC: dict[str, Callable[[int], list[bytes]]] = {
    "get_profile": _get_profile,
    "get_profile, missed": _get_profile_missed,
    "hello": _hello,
    "jwks": _jwks,
    "login": _login,
    "register": _register,
    "verify_email": _verify_email,
    "withdraw": _withdraw,
    "refresh_token": _refresh_token,
    "logout": _logout,
    "update_profile": _update_profile,
    "list_sessions": _list_sessions,
    "revoke_session": _revoke_session,
    "request_email_verification": _request_email_verification,
    "request_phone_code": _request_phone_code,
    "verify_phone": _verify_phone,
    "login_with_second_factor": _login_with_second_factor,
    "list_users": _list_users,
    "get_user": _get_user,
    "list_audit": _list_audit,
    "export_data": _export_data,
    "send_email": _send_email,
    "send_sms": _send_sms,
}
"""By function: creates the given number of requests, or fewer if there are not enough users."""
