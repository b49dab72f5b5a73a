"""The export of all that is stored on a user."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Table, insert, update
from uuid_utils.compat import uuid7

from functions import export_data
from shared.identity import access_tokens
from shared.postgresql.tables import (
    account,
    audit,
    business,
    challenge,
    credential,
    dead_letter,
    former_email,
    metadata,
    outbox,
    passkey,
    phone_verification,
    purged_account,
    recovery_code,
    refresh_token,
    session,
    totp,
    verification,
)
from shared.postgresql.transactions import transaction
from tests.conftest import User, bearer, call, client, create_user, events_of, passkey_session_of, session_of

pytestmark = pytest.mark.usefixtures("alone")  # what is exported here has long expired

THEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

# Every column of every table that says something about a user is in one of these two.
EXPORTED: dict[Table, dict[str, Any]] = {
    account: {
        "email": "exported@example.com",
        "new_email": "New@example.com",
        "new_canonical_email": "new@example.com",
        "name": "내보낸 이름",
        "locale": "en",
        "status": "active",
        "created_at": THEN,
        "email_verified_at": THEN + timedelta(1),
        "roles": ["exported-role"],
        "phone": "+821012345678",
        "phone_verified_at": THEN + timedelta(2),
    },
    former_email: {
        "email": "Former@example.com",
        "canonical_email": "former@example.com",
        "replaced_at": THEN,
        "expires_at": THEN + timedelta(7),
    },
    phone_verification: {"phone": "+821087654321", "tries": 3, "requested_at": THEN, "expires_at": THEN},
    business: {
        "number": "1234567891",
        "opened_on": date(2001, 2, 3),
        "representative": "대표자",
        "status": "rejected",
        "reason": "no such business",
        "submitted_at": THEN,
        "checked_at": THEN,
    },
    totp: {"created_at": THEN, "confirmed_at": THEN + timedelta(3)},
    passkey: {
        "name": "열쇠",
        "sign_count": 77,
        "backup_eligible": True,
        "created_at": THEN,
        "last_used_at": THEN + timedelta(4),
    },
    audit: {"event_id": uuid7(), "type": "audited", "occurred_at": THEN, "request_id": "r-audit", "data": {"a": 1}},
    session: {
        "device": "an ended session",
        "address": "192.0.2.7",
        "amr": ["pwd", "otp"],
        "created_at": THEN,
        "authenticated_at": THEN,
        "last_used_at": THEN + timedelta(5),
        "expires_at": THEN + timedelta(6),
        "ended_at": THEN + timedelta(7),
    },
    outbox: {"type": "announced", "occurred_at": THEN, "request_id": "r-outbox", "data": {"b": 2}},
}
NOT_EXPORTED: dict[Table, dict[str, str]] = {
    business: {
        "check_announced_at": "about our own work: the check shows as checked_at",
        "holds_number": "follows from the status",
    },
    credential: {"password_hash": "secret: said to be there", "changed_at": "in secrets"},
    verification: dict.fromkeys(("purpose", "token_hash", "created_at", "expires_at"), "secret: said to be there"),
    recovery_code: {"code_hash": "secret: counted"},
    challenge: dict.fromkeys(
        ("token_hash", "purpose", "tries", "created_at", "expires_at"), "secret of minutes: said to be there"
    ),
    former_email: {"id": "of the row alone", "token_hash": "secret of days: said to be there"},
    refresh_token: dict.fromkeys(("token_hash", "used_at"), "secret: said to be there"),
    phone_verification: {"code_hash": "secret: said to be there"},
    totp: {"secret": "secret: said to be there", "last_step": "guards the secret"},
    passkey: {"id": "shown as it is", "credential_id": "key material", "public_key": "key material: counted"},
    account: {
        "id": "shown as it is",
        "canonical_email": "shown as it is",
        "withdrawn_at": "shown as it is: empty while the account can be read",
    },
    session: {"id": "shown as it is"},
    dead_letter: dict.fromkeys(set(dead_letter.c.keys()) - {"subject"}, "a copy of an event, on our own work with it"),
    purged_account: {"purged_at": "of those who are gone: nobody who can ask"},
    outbox: {"id": "shown as it is", "position": "order of sending", "sent_at": "of the delivery, not of the user"},
}
OF_NOBODY = {
    "backup": "of the whole database",
    "stored_answer": "keyed by a hash that leads back to nobody, sealed, gone after a day",
    "processed_event": "ids of events alone",
    "relayed_topic": "of the broker",
}
SECRETS = [b"sealed totp secret", b"hash of a code", b"public key", b"credential id", b"hash of a token"]


def owner_columns(table: Table) -> set[str]:
    """The columns by which a row belongs to an account, or to a session of one."""
    references = {key.parent.name for key in table.foreign_keys if key.column.table in (account, session)}
    return references | ({"account_id", "subject"} & set(table.c.keys()))


def fill(user: User) -> None:
    """Stores something of the user in every table."""
    kept: dict[Table, dict[str, Any]] = {
        phone_verification: {"code_hash": SECRETS[1]},
        totp: {"secret": SECRETS[0]},
        former_email: {"id": uuid7(), "canonical_email": f"former-{user.id}@example.com", "token_hash": user.id.bytes},
        passkey: {"id": uuid7(), "credential_id": SECRETS[3] + user.id.bytes, "public_key": SECRETS[2]},
        session: {"id": uuid7()},
        outbox: {"id": uuid7()},
    }
    with transaction() as connection:
        values = EXPORTED[account] | {"email": user.email}
        connection.execute(update(account).where(account.c.id == user.id).values(values))
        for table, row in EXPORTED.items():
            if table is not account:
                owner = "subject" if table is outbox else "account_id"
                changes = {"event_id": uuid7()} if table is audit else {}
                connection.execute(insert(table).values(row | kept.get(table, {}) | changes | {owner: user.id}))
        owned = {"account_id": user.id}
        connection.execute(
            insert(verification).values(owned | {"purpose": "p", "token_hash": user.id.bytes, "expires_at": THEN})
        )
        connection.execute(insert(recovery_code).values(owned | {"code_hash": SECRETS[1]}))
        connection.execute(
            insert(challenge).values(owned | {"token_hash": user.id.bytes, "purpose": "p", "expires_at": THEN})
        )


def test_every_table_and_column_is_exported_or_left_out_for_a_reason() -> None:
    for table in metadata.sorted_tables:
        if table.name in OF_NOBODY:
            assert not owner_columns(table), f"{table.name} belongs to an account"
            continue
        assert owner_columns(table) or table is account, f"say of whom {table.name} is"
        told = EXPORTED.get(table, {}).keys() | NOT_EXPORTED.get(table, {}).keys() | owner_columns(table)
        assert set(table.c.keys()) == told, table.name


def test_all_that_is_stored_is_in_the_document(active_user: User) -> None:
    fill(active_user)
    tokens = passkey_session_of(active_user)
    response = call("export_data", tokens)
    assert response.status_code == 200
    document = response.json
    parts = {
        account: [document["account"]],
        former_email: document["former_emails"],
        phone_verification: [document["waiting_phone"]],
        business: [document["business"]],
        totp: [document["second_factor"]],
        passkey: document["passkeys"],
        audit: document["audit"],
        session: document["sessions"],
        outbox: document["events"],
    }
    assert parts.keys() == EXPORTED.keys()
    for table, row in EXPORTED.items():
        expected = {
            column: value.isoformat() if isinstance(value, date) else value
            for column, value in row.items()
            if column not in ("event_id", "email", "canonical_email")
        }
        assert any(expected.items() <= part.items() for part in parts[table]), (table.name, parts[table])
    assert document["account"] | {"id": str(active_user.id), "email": active_user.email} == document["account"]
    assert document["complete"] is True


def test_secrets_are_said_to_be_there_and_not_shown(active_user: User) -> None:
    fill(active_user)
    tokens = passkey_session_of(active_user)
    response = call("export_data", tokens)
    secrets = response.json["secrets"]
    assert secrets.pop("password_changed_at").endswith("+00:00")
    assert secrets == {
        "second_factor": True,
        "recovery_codes": 1,
        "passkey_public_keys": 1,
        "refresh_tokens": True,
        "first_factor_code": False,
        "mailed_links": True,
        "texted_code": True,
        "unfinished_log_ins": True,
    }
    for secret in (*SECRETS, b"$argon2id$", tokens["refresh_token"].encode()):
        assert secret not in response.data
        assert secret.hex().encode() not in response.data


def test_who_has_given_nothing_more_gets_a_short_document(active_user: User) -> None:
    document = call("export_data", session_of(active_user)).json
    assert [document[part] for part in ("waiting_phone", "business", "second_factor")] == [None] * 3
    assert (document["passkeys"], len(document["sessions"])) == ([], 1)
    assert {entry["type"] for entry in document["audit"]} == {"com.aegis.user.logged_in.v1"}


def test_ended_sessions_are_in_it_newest_first(active_user: User) -> None:
    first, second = session_of(active_user), session_of(active_user)
    call("logout", first)
    shown = call("export_data", second).json["sessions"]
    assert [each["id"] for each in shown] == [
        str(access_tokens.verify(tokens["access_token"]).session_id) for tokens in (second, first)
    ]
    assert [each["ended_at"] is None for each in shown] == [True, False]


def test_nothing_of_others_is_in_it(active_user: User) -> None:
    other = create_user("other-" + active_user.email)
    fill(other)
    session_of(other)
    response = call("export_data", session_of(active_user))
    assert str(other.id) not in response.text
    assert "대표자" not in response.text


def test_what_is_too_much_for_one_document_is_said(active_user: User, monkeypatch: Any) -> None:
    monkeypatch.setattr(export_data, "MAX_ITEMS", 2)
    tokens = [session_of(active_user) for _ in range(3)][-1]
    document = call("export_data", tokens).json
    assert (document["complete"], len(document["sessions"]), len(document["events"])) == (False, 2, 2)


def test_an_export_is_announced(active_user: User) -> None:
    call("export_data", session_of(active_user))
    assert events_of(active_user)[-1] == "data_exported"


def test_a_head_request_exports_nothing_and_uses_up_no_export(active_user: User) -> None:
    """RFC 9110, 9.3.2: HEAD asks for the headers alone."""
    tokens = session_of(active_user)
    for _ in range(3):
        head = client("export_data").head("/api/v1/users/me/export", headers=bearer(tokens))
        assert (head.status_code, head.data) == (200, b"")
    assert "data_exported" not in events_of(active_user)
    assert [call("export_data", tokens).status_code for _ in range(10)] == [200] * 10


def test_the_eleventh_within_an_hour_has_to_wait(active_user: User) -> None:
    tokens = session_of(active_user)
    answers = [call("export_data", tokens) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    assert int(answers[-1].headers["Retry-After"]) > 0


def test_an_account_that_is_gone_is_a_401(active_user: User) -> None:
    tokens = session_of(active_user)
    assert call("get_profile", tokens).status_code == 200
    with transaction() as connection:
        connection.execute(account.delete().where(account.c.id == active_user.id))
    assert call("export_data", tokens).status_code == 401
