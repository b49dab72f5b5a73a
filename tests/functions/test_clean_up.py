"""What is deleted when it has expired, and what is not."""

import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Table, delete, func, insert, select, update
from uuid_utils.compat import uuid7

from functions import clean_up
from shared.identity import sessions
from shared.postgresql.tables import (
    account,
    challenge,
    credential,
    dead_letter,
    phone_verification,
    processed_event,
    purged_account,
    refresh_token,
    session,
    stored_answer,
    totp,
    verification,
)
from shared.postgresql.transactions import transaction
from tests.conftest import User, call, create_user, fire, owner, session_of

pytestmark = pytest.mark.usefixtures("alone")

MARGIN = timedelta(seconds=30)
"""More than a test takes, less than any of the times."""


def ago(time: timedelta) -> Any:
    return func.now() - time


def random() -> bytes:
    return secrets.token_bytes(16)


def session_row(user: User, **values: Any) -> dict[str, Any]:
    return {"id": uuid7(), "account_id": user.id, "expires_at": func.now()} | values


def with_session(user: User, **values: Any) -> Any:
    (id_,) = put(session, session_row(user, **values))
    return id_


def token(user: User, used: timedelta | None) -> dict[str, Any]:
    return {
        "token_hash": random(),
        "session_id": with_session(user),
        "used_at": None if used is None else ago(used),
    }


def letter(**values: Any) -> dict[str, Any]:
    row = {"function": "tested", "source": "/tests", "event_id": str(uuid7()), "type": "tested", "error": "503"}
    return row | {"attributes": {}, "data": b""} | values


Row = Callable[[User], Mapping[str, Any]]
DAY = timedelta(days=1)

EXPIRED: dict[str, tuple[Table, Row, Row]] = {
    "verification": (
        verification,
        lambda user: {"account_id": user.id, "purpose": "a", "token_hash": random(), "expires_at": ago(MARGIN)},
        lambda user: {"account_id": user.id, "purpose": "b", "token_hash": random(), "expires_at": ago(-MARGIN)},
    ),
    "challenge": (
        challenge,
        lambda _: {"token_hash": random(), "purpose": "a", "expires_at": ago(MARGIN)},
        lambda _: {"token_hash": random(), "purpose": "a", "expires_at": ago(-MARGIN)},
    ),
    "phone code": (
        phone_verification,
        lambda user: {"account_id": user.id, "phone": "+82", "requested_at": ago(DAY + MARGIN), "expires_at": ago(DAY)},
        lambda user: {"account_id": user.id, "phone": "+82", "requested_at": ago(DAY - MARGIN), "expires_at": ago(DAY)},
    ),
    "phone code never sent": (
        phone_verification,
        lambda user: {"account_id": user.id, "phone": "+82", "requested_at": ago(DAY + MARGIN)},
        lambda user: {"account_id": user.id, "phone": "+82", "requested_at": ago(DAY), "expires_at": ago(-MARGIN)},
    ),
    "second factor": (
        totp,
        lambda user: {"account_id": user.id, "secret": b"s", "created_at": ago(DAY + MARGIN)},
        lambda user: {"account_id": user.id, "secret": b"s", "created_at": ago(DAY - MARGIN)},
    ),
    "second factor that is confirmed": (
        totp,
        lambda user: {"account_id": user.id, "secret": b"s", "created_at": ago(DAY + MARGIN)},
        lambda user: {"account_id": user.id, "secret": b"s", "created_at": ago(9 * DAY), "confirmed_at": ago(9 * DAY)},
    ),
    "stored answer": (
        stored_answer,
        lambda _: {"id": random(), "fingerprint": b"f", "claimed_at": ago(DAY + MARGIN)},
        lambda _: {"id": random(), "fingerprint": b"f", "claimed_at": ago(DAY - MARGIN)},
    ),
    "used refresh token": (
        refresh_token,
        lambda user: token(user, used=sessions.LIFETIME + MARGIN),
        lambda user: token(user, used=sessions.LIFETIME - MARGIN),
    ),
    "unused refresh token": (
        refresh_token,
        lambda user: token(user, used=sessions.LIFETIME + MARGIN),
        lambda user: token(user, used=None),
    ),
    "ended session": (
        session,
        lambda user: {
            "id": uuid7(),
            "account_id": user.id,
            "expires_at": func.now(),
            "ended_at": ago(90 * DAY + MARGIN),
        },
        lambda user: {
            "id": uuid7(),
            "account_id": user.id,
            "expires_at": func.now(),
            "ended_at": ago(90 * DAY - MARGIN),
        },
    ),
    "expired session": (
        session,
        lambda user: session_row(user, expires_at=ago(90 * DAY + MARGIN)),
        lambda user: session_row(user, expires_at=ago(90 * DAY - MARGIN)),
    ),
    "processed event": (
        processed_event,
        lambda _: {"function": "tested", "event_id": str(uuid7()), "claimed_at": ago(8 * DAY + MARGIN)},
        lambda _: {"function": "tested", "event_id": str(uuid7()), "claimed_at": ago(8 * DAY - MARGIN)},
    ),
    "dead letter that was retried": (
        dead_letter,
        lambda _: letter(retried_at=ago(30 * DAY + MARGIN)),
        lambda _: letter(retried_at=ago(30 * DAY - MARGIN)),
    ),
    "dead letter that nobody retried": (
        dead_letter,
        lambda _: letter(retried_at=ago(30 * DAY + MARGIN)),
        lambda _: letter(first_at=ago(999 * DAY), last_at=ago(999 * DAY)),
    ),
}


def put(table: Table, row: Mapping[str, Any]) -> Any:
    with transaction() as connection:
        return connection.execute(insert(table).values(row).returning(*table.primary_key)).one()


def is_there(table: Table, key: Any) -> bool:
    with owner().connect() as connection:
        query = select(func.count()).select_from(table)
        for column, value in zip(table.primary_key, key, strict=True):
            query = query.where(column == value)
        return connection.scalar(query) == 1


@pytest.mark.parametrize("kind", EXPIRED)
def test_what_has_expired_goes_and_what_has_not_stays(kind: str, address: str) -> None:
    table, expired, live = EXPIRED[kind]
    gone, kept = put(table, expired(create_user(address))), put(table, live(create_user("other-" + address)))
    assert fire("clean_up").status_code == 204
    assert (is_there(table, gone), is_there(table, kept)) == (False, True)


def test_who_has_processed_an_event_is_known_as_long_as_there_is_a_dead_letter_of_it() -> None:
    """Or a mail would be sent again, when months later the event is retried for another function."""
    lost = letter()
    mailed = {"function": "mailed", "event_id": f"/tests {lost['event_id']}", "claimed_at": ago(100 * DAY)}
    key = put(processed_event, mailed)
    number = put(dead_letter, lost)
    fire("clean_up")
    assert is_there(processed_event, key)
    with transaction() as connection:
        connection.execute(delete(dead_letter).where(dead_letter.c.number == number[0]))
    fire("clean_up")
    assert not is_there(processed_event, key)


def test_a_session_takes_its_refresh_tokens_along(active_user: User) -> None:
    id_ = with_session(active_user, ended_at=ago(91 * DAY))
    key = put(refresh_token, {"token_hash": random(), "session_id": id_})
    fire("clean_up")
    assert not is_there(refresh_token, key)


def test_reuse_of_a_refresh_token_is_still_recognized(active_user: User) -> None:
    stolen = session_of(active_user)["refresh_token"]
    second = call("refresh_token", body={"refresh_token": stolen}).json
    almost = sessions.LIFETIME - timedelta(minutes=1)
    with transaction() as connection:  # as late in the session as it can be, kept in use
        mine = session.c.account_id == active_user.id
        connection.execute(update(session).where(mine).values(expires_at=ago(timedelta(minutes=-1))))
        connection.execute(
            update(refresh_token)
            .where(refresh_token.c.token_hash == sessions.hash_refresh_token(stolen))
            .values(used_at=ago(almost))
        )
    fire("clean_up")
    assert call("refresh_token", body={"refresh_token": stolen}).status_code == 401
    assert call("refresh_token", body={"refresh_token": second["refresh_token"]}).status_code == 401
    assert call("get_profile", second).status_code == 401


def pending(address: str, *, created: timedelta, registered: timedelta, has_a_link: bool = False) -> tuple[Any, ...]:
    """An account that waits for its verification, and when its address was registered first and last."""
    user = create_user(address, "pending")
    link = {"account_id": user.id, "purpose": "verify_email", "token_hash": random(), "expires_at": ago(-DAY)}
    with transaction() as connection:  # one, as other tests clean up at any moment
        if has_a_link:
            connection.execute(insert(verification).values(link))
        connection.execute(update(account).where(account.c.id == user.id).values(created_at=ago(created)))
        connection.execute(
            update(credential).where(credential.c.account_id == user.id).values(changed_at=ago(registered))
        )
    return (user.id,)


def test_who_never_verified_an_address_is_forgotten(address: str) -> None:
    never = pending(address, created=7 * DAY + MARGIN, registered=7 * DAY + MARGIN)
    fire("clean_up")
    assert not is_there(account, never)
    assert is_there(purged_account, never)  # so that no backup brings them back


def test_who_may_still_verify_an_address_is_not_forgotten(address: str) -> None:
    lately = pending("a-" + address, created=7 * DAY - MARGIN, registered=7 * DAY - MARGIN)
    again = pending("b-" + address, created=30 * DAY, registered=DAY)
    has_a_link = pending("c-" + address, created=30 * DAY, registered=30 * DAY, has_a_link=True)
    verified = create_user("d-" + address)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == verified.id).values(created_at=ago(99 * DAY)))
    fire("clean_up")
    assert [is_there(account, key) for key in (lately, again, has_a_link, (verified.id,))] == [True] * 4


def test_more_than_one_batch_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_up, "BATCH", 2)
    _, expired, _ = EXPIRED["stored answer"]
    keys = [put(stored_answer, expired(User(uuid7(), ""))) for _ in range(7)]
    fire("clean_up")
    assert not any(is_there(stored_answer, key) for key in keys)


def test_what_somebody_works_on_is_passed_over(active_user: User) -> None:
    _, expired, _ = EXPIRED["verification"]
    key = put(verification, expired(active_user))
    with transaction() as connection:
        connection.execute(
            select(verification.c.purpose).where(verification.c.account_id == active_user.id).with_for_update()
        )
        assert fire("clean_up").status_code == 204
    assert is_there(verification, key)
    fire("clean_up")
    assert not is_there(verification, key)


def test_every_condition_has_an_index() -> None:
    """With a table too large to read as a whole."""
    with transaction() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for kind, (table, condition) in clean_up.expired().items():
            query = select(*table.primary_key).where(condition).limit(clean_up.BATCH)
            plan = connection.exec_driver_sql(
                f"EXPLAIN {query.compile(connection, compile_kwargs={'literal_binds': True})}"
            ).scalars()
            assert f"Seq Scan on {table.name}" not in "\n".join(plan), kind
