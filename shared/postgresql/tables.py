"""The tables, as the migrations create them."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

_now = text("now()")


def folded_name(name: Any) -> ColumnElement[str]:
    """Return a form of the name that ignores case and composition: Weiß equals WEISS."""
    return func.replace(func.lower(func.upper(func.normalize(name))), text("'ß'"), text("'ss'"))


account = Table(
    "account",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("email", Text, nullable=False),  # as typed
    Column("canonical_email", Text, nullable=False, unique=True),  # as compared
    Column("name", Text),
    Column("locale", Text, nullable=False),
    Column("status", Text, nullable=False),  # pending until the address is verified, active, suspended, withdrawn
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("email_verified_at", DateTime(timezone=True)),
    Column("roles", ARRAY(Text), nullable=False, server_default="{}"),
    Column("new_email", Text),  # replaces email once it is verified
    Column("new_canonical_email", Text),
    Column("phone", Text),  # E.164, verified
    Column("phone_verified_at", DateTime(timezone=True)),
    Column("withdrawn_at", DateTime(timezone=True)),
)
Index(
    "account_new_canonical_email",
    account.c.new_canonical_email,
    postgresql_where=account.c.new_canonical_email.is_not(None),
)
Index("account_withdrawn_at", account.c.withdrawn_at, postgresql_where=account.c.withdrawn_at.is_not(None))
Index("account_pending", account.c.created_at, postgresql_where=account.c.status == text("'pending'"))
# For the administrators' search; prefix queries need text_pattern_ops unless the collation is C.
Index(
    "account_canonical_email_prefix", account.c.canonical_email, postgresql_ops={"canonical_email": "text_pattern_ops"}
)
Index("account_name_prefix", func.lower(account.c.name).label("name"), postgresql_ops={"name": "text_pattern_ops"})
# Replaces those two, which the next release drops; has every column needed to select the accounts of a page.
Index(
    "account_canonical_email_prefix_with_id",
    account.c.canonical_email,
    postgresql_ops={"canonical_email": "text_pattern_ops"},
    postgresql_include=["id", "status"],
)
Index(
    "account_name_prefix_with_id",  # the next release drops this one too
    func.lower(account.c.name).label("name"),
    postgresql_ops={"name": "text_pattern_ops"},
    postgresql_include=["name", "id", "status"],
)
Index(
    "account_folded_name_prefix",
    folded_name(account.c.name).label("folded_name"),
    postgresql_ops={"folded_name": "text_pattern_ops"},
    postgresql_include=["name", "id", "status"],
)
Index("account_phone", account.c.phone, postgresql_where=account.c.phone.is_not(None))
Index("account_status", account.c.status, account.c.id)
Index("account_with_roles", account.c.id, postgresql_where=account.c.roles != text("'{}'"))

credential = Table(
    "credential",
    metadata,
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("password_hash", Text, nullable=False),  # argon2id
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=_now),
)

verification = Table(
    "verification",
    metadata,
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("purpose", Text, primary_key=True),  # one live token for each; a new one replaces it
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
Index("verification_expires_at", verification.c.expires_at)

former_email = Table(
    "former_email",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("email", Text, nullable=False),
    Column("canonical_email", Text, nullable=False, unique=True),
    Column("token_hash", LargeBinary, unique=True),  # set once the mail was composed
    Column("replaced_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
Index("former_email_account_id", former_email.c.account_id)
Index("former_email_expires_at", former_email.c.expires_at)

session = Table(
    "session",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True)),
    Column("amr", ARRAY(Text), nullable=False, server_default="{pwd}"),  # how the user proved who they are (RFC 8176)
    Column("authenticated_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("last_used_at", DateTime(timezone=True), nullable=False, server_default=_now),  # at the last refresh
    Column("device", Text, nullable=False, server_default=""),
    Column("address", Text, nullable=False, server_default=""),
)
Index("session_expires_at", session.c.expires_at)
Index("session_ended_at", session.c.ended_at, postgresql_where=session.c.ended_at.is_not(None))

refresh_token = Table(
    "refresh_token",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("session_id", Uuid, ForeignKey("session.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("used_at", DateTime(timezone=True)),
)
Index("refresh_token_used_at", refresh_token.c.used_at, postgresql_where=refresh_token.c.used_at.is_not(None))

outbox = Table(
    "outbox",
    metadata,
    Column("position", BigInteger, nullable=False, server_default=text("nextval('outbox_positions'::regclass)")),
    Column("id", Uuid, primary_key=True),
    Column("type", Text, nullable=False),
    Column("subject", Uuid, nullable=False),  # the user, whose events are sent in order
    Column("data", JSONB, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), primary_key=True, server_default=_now),  # one partition per day
    Column("sent_at", DateTime(timezone=True)),
    postgresql_partition_by="RANGE (occurred_at)",
)
Index("outbox_unsent", outbox.c.position, postgresql_where=outbox.c.sent_at.is_(None))
Index("outbox_subject", outbox.c.subject, outbox.c.position)

relayed_topic = Table(
    "relayed_topic",
    metadata,
    Column("name", Text, primary_key=True),
    Column("topic_id", Text, nullable=False),
    Column("ends", ARRAY(BigInteger), nullable=False, server_default="{}"),  # per partition, after the last send
)

processed_event = Table(
    "processed_event",
    metadata,
    Column("function", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("claimed_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("done_at", DateTime(timezone=True)),
)
Index("processed_event_claimed_at", processed_event.c.claimed_at)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("number", BigInteger, Identity(always=True), primary_key=True),  # how operators refer to it
    Column("function", Text, nullable=False),  # the one that could not process it
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", Text),
    Column("attributes", JSONB, nullable=False),  # all attributes of the event, as text
    Column("data", LargeBinary, nullable=False),
    Column("content_type", Text),
    Column("error", Text, nullable=False),
    Column("count", Integer, nullable=False, server_default="1"),  # how often delivery was given up
    Column("first_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("last_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("retried_at", DateTime(timezone=True)),  # by an operator; null again if that delivery was given up too
    UniqueConstraint("function", "source", "event_id", name="dead_letter_event"),
)
Index("dead_letter_open", dead_letter.c.function, postgresql_where=dead_letter.c.retried_at.is_(None))
Index("dead_letter_retried_at", dead_letter.c.retried_at)

totp = Table(
    "totp",
    metadata,
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("secret", LargeBinary, nullable=False),  # encrypted: needed to check codes
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("confirmed_at", DateTime(timezone=True)),
    Column("last_step", BigInteger, nullable=False, server_default="0"),  # codes of this or an earlier step are refused
)
Index("totp_unconfirmed", totp.c.created_at, postgresql_where=totp.c.confirmed_at.is_(None))

recovery_code = Table(
    "recovery_code",
    metadata,
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("code_hash", LargeBinary, primary_key=True),  # deleted when it is used
)

passkey = Table(
    "passkey",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("credential_id", LargeBinary, nullable=False, unique=True),
    Column("public_key", LargeBinary, nullable=False),  # COSE
    Column("sign_count", BigInteger, nullable=False),
    Column("backup_eligible", Boolean),  # null for passkeys registered before this column existed
    Column("name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("last_used_at", DateTime(timezone=True)),
)
Index("passkey_account_id", passkey.c.account_id)

challenge = Table(
    "challenge",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE")),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
Index("challenge_account_id", challenge.c.account_id)
Index("challenge_expires_at", challenge.c.expires_at)

phone_verification = Table(
    "phone_verification",
    metadata,
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("phone", Text, nullable=False),  # E.164
    Column("code_hash", LargeBinary),  # set once the text message was composed
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True)),
)
Index("phone_verification_requested_at", phone_verification.c.requested_at)

business = Table(
    "business",
    metadata,
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Text, nullable=False),  # ten digits
    Column("opened_on", Date, nullable=False),
    Column("representative", Text, nullable=False),
    Column("status", Text, nullable=False),  # pending, verified, rejected, closed
    Column("reason", Text),  # of a rejection or a closure
    Column("submitted_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("checked_at", DateTime(timezone=True)),
    Column("check_announced_at", DateTime(timezone=True)),
    Column("holds_number", Boolean, nullable=False, server_default="false"),  # while verified, reserves the number
)
Index(
    "business_held_number",
    business.c.number,
    unique=True,
    postgresql_where=and_(business.c.status == text("'verified'"), business.c.holds_number),
)
Index("business_number", business.c.number)
Index("business_checked_at", business.c.checked_at)

stored_answer = Table(
    "stored_answer",
    metadata,
    Column("id", LargeBinary, primary_key=True),  # derived from function, caller and Idempotency-Key
    Column("fingerprint", LargeBinary, nullable=False),  # of the request
    Column("answer", LargeBinary),  # encrypted; null while the request is in progress
    Column("claimed_at", DateTime(timezone=True), nullable=False, server_default=_now),
)
Index("stored_answer_claimed_at", stored_answer.c.claimed_at)

audit = Table(
    "audit",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("account_id", Uuid, nullable=False),  # no foreign key: outlives the account
    Column("type", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("data", JSONB, nullable=False),
)
Index("audit_account_id", audit.c.account_id, audit.c.event_id)

purged_account = Table(
    "purged_account",
    metadata,
    Column("account_id", Uuid, primary_key=True),  # no foreign key: the account is gone, even after a restore
    Column("purged_at", DateTime(timezone=True), nullable=False, server_default=_now),
)

backup = Table(
    "backup",
    metadata,
    Column("name", Text, primary_key=True),  # as in the store
    Column("taken_at", DateTime(timezone=True), nullable=False),
    Column("size", BigInteger, nullable=False),  # in bytes, in the store
)
