"""Export all data stored about the caller."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from flask import Request
from sqlalchemy import Connection, Select, exists, func, select
from typing_extensions import TypedDict

from shared.events.outbox import announce
from shared.events.types import DataExported
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity.access_tokens import Caller
from shared.identity.verifications import FIRST_FACTOR
from shared.postgresql.replica import read
from shared.postgresql.tables import (
    account,
    audit,
    business,
    challenge,
    credential,
    former_email,
    outbox,
    passkey,
    phone_verification,
    recovery_code,
    refresh_token,
    session,
    totp,
    verification,
)
from shared.postgresql.transactions import transaction
from shared.runtime.problems import Unauthenticated
from shared.text.formats import DateText, TimeText, UuidText

MAX_ITEMS = 5000
"""The newest of each kind; a user with more gets the rest on request."""


class ExportedAccount(TypedDict):
    id: UuidText
    email: str
    canonical_email: str
    new_email: str | None
    new_canonical_email: str | None
    name: str | None
    locale: str
    status: str
    roles: list[str]
    phone: str | None
    phone_verified_at: TimeText | None
    created_at: TimeText
    email_verified_at: TimeText | None
    withdrawn_at: TimeText | None


class ExportedFormerEmail(TypedDict):
    email: str
    canonical_email: str
    replaced_at: TimeText
    expires_at: TimeText


class ExportedSession(TypedDict):
    id: UuidText
    device: str
    address: str
    amr: list[str]
    created_at: TimeText
    authenticated_at: TimeText
    last_used_at: TimeText
    expires_at: TimeText
    ended_at: TimeText | None


class ExportedPhone(TypedDict):
    phone: str
    tries: int
    requested_at: TimeText
    expires_at: TimeText | None


class ExportedBusiness(TypedDict):
    number: str
    opened_on: DateText
    representative: str
    status: str
    reason: str | None
    submitted_at: TimeText
    checked_at: TimeText | None


class ExportedPasskey(TypedDict):
    id: UuidText
    name: str
    sign_count: int
    backup_eligible: bool | None
    created_at: TimeText
    last_used_at: TimeText | None


class ExportedSecondFactor(TypedDict):
    created_at: TimeText
    confirmed_at: TimeText | None


class ExportedEvent(TypedDict):
    id: UuidText
    type: str
    occurred_at: TimeText
    request_id: str
    data: dict[str, Any]


class ExportedSecrets(TypedDict):
    """Which secrets are stored. They are not shown, because anyone who has them could act as the user."""

    password_changed_at: TimeText | None
    second_factor: bool
    recovery_codes: int
    passkey_public_keys: int
    refresh_tokens: bool
    first_factor_code: bool
    mailed_links: bool
    texted_code: bool
    unfinished_log_ins: bool


class PersonalData(TypedDict):
    exported_at: TimeText
    account: ExportedAccount
    former_emails: list[ExportedFormerEmail]
    waiting_phone: ExportedPhone | None
    business: ExportedBusiness | None
    second_factor: ExportedSecondFactor | None
    passkeys: list[ExportedPasskey]
    sessions: list[ExportedSession]
    audit: list[ExportedEvent]
    events: list[ExportedEvent]
    secrets: ExportedSecrets
    complete: bool


@http_function(
    "GET",
    "/api/v1/users/me/export",
    scaling=Scaling("export"),  # at most ten an hour per user: one pod is enough, the second absorbs bursts
    recent_login=True,
    limits={"address": "60/minute", "account": "10/hour"},
    may_lag=True,
)
def export_data(caller: Caller, request: Request) -> PersonalData:
    """Export all data stored about the caller.

    One document, consistent at one moment (PIPA, art. 35; GDPR, art. 15 and 20): account, former addresses, unverified
    phone number, business, second factor, passkeys, open and ended sessions, the audit trail, and the events still kept
    for delivery. For passwords, keys, codes and tokens it only shows that they exist. `complete` is false if there are
    more than 5,000 sessions, audit entries or events; then only the newest are included.
    """
    # A safe method may still record its use (RFC 9110, 9.2.1): users must be able to see who exported their data.
    data = read(lambda connection: _personal_data(connection, caller.user_id))
    if request.method != "HEAD":  # which returns no data
        with transaction() as connection:
            announce(connection, DataExported(user_id=caller.user_id))
    return data


def _personal_data(connection: Connection, user_id: UUID) -> PersonalData:
    found = _one(connection, _columns(ExportedAccount, account).where(account.c.id == user_id))
    if found is None:
        raise Unauthenticated

    def one(shown: Any, table: Any) -> Any:
        return _one(connection, _columns(shown, table).where(table.c.account_id == user_id))

    def newest(query: Select[Any], order: Any) -> list[Any]:
        rows = connection.execute(query.order_by(order.desc()).limit(MAX_ITEMS + 1))
        return [_plain(row) for row in rows.mappings()]

    sessions = newest(_columns(ExportedSession, session).where(session.c.account_id == user_id), session.c.id)
    entries = newest(
        select(
            audit.c.event_id.label("id"),
            *audit.c["type", "occurred_at", "request_id"],
            # The administrator's id is not data about the caller.
            audit.c.data.op("-")("actor_id").label("data"),
        ).where(audit.c.account_id == user_id),
        audit.c.event_id,
    )
    events = newest(_columns(ExportedEvent, outbox).where(outbox.c.subject == user_id), outbox.c.position)
    return PersonalData(
        exported_at=datetime.now(UTC).isoformat(),
        account=found,
        former_emails=newest(
            _columns(ExportedFormerEmail, former_email).where(former_email.c.account_id == user_id), former_email.c.id
        ),
        waiting_phone=one(ExportedPhone, phone_verification),
        business=one(ExportedBusiness, business),
        second_factor=one(ExportedSecondFactor, totp),
        passkeys=newest(_columns(ExportedPasskey, passkey).where(passkey.c.account_id == user_id), passkey.c.id),
        sessions=sessions[:MAX_ITEMS],
        audit=entries[:MAX_ITEMS],
        events=events[:MAX_ITEMS],
        secrets=_secrets(connection, user_id),
        complete=max(len(sessions), len(entries), len(events)) <= MAX_ITEMS,
    )


def _secrets(connection: Connection, user_id: UUID) -> ExportedSecrets:
    def any_of(table: Any, *conditions: Any) -> Any:
        return exists().where(table.c.account_id == user_id, *conditions)

    def count(table: Any) -> Any:
        return select(func.count()).select_from(table).where(table.c.account_id == user_id).scalar_subquery()

    changed_at = select(credential.c.changed_at).where(credential.c.account_id == user_id).scalar_subquery()
    kept = {
        "password_changed_at": changed_at,
        "second_factor": any_of(totp),
        "recovery_codes": count(recovery_code),
        "passkey_public_keys": count(passkey),
        "refresh_tokens": any_of(session, refresh_token.c.session_id == session.c.id),
        "first_factor_code": any_of(verification, verification.c.purpose == FIRST_FACTOR),
        "mailed_links": any_of(verification, verification.c.purpose != FIRST_FACTOR)
        | any_of(former_email, former_email.c.token_hash.is_not(None)),
        "texted_code": any_of(phone_verification, phone_verification.c.code_hash.is_not(None)),
        "unfinished_log_ins": any_of(challenge),
    }
    return _one(connection, select(*(value.label(name) for name, value in kept.items())))  # type: ignore[no-any-return]


def _columns(shown: Any, table: Any) -> Select[Any]:
    """Select the columns of a table that a part of the document shows."""
    return select(*(table.c[name] for name in shown.__annotations__))


def _one(connection: Connection, query: Select[Any]) -> Any:
    row = connection.execute(query).mappings().first()
    return None if row is None else _plain(row)


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert a row to JSON types."""
    return {
        name: value.isoformat() if isinstance(value, date) else str(value) if isinstance(value, UUID) else value
        for name, value in row.items()
    }
