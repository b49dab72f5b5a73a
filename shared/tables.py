"""The tables. PostgreSQL holds the truth; what is here is created by the migrations."""

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

_now = text("now()")

account = Table(
    "account",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("email", Text, nullable=False),  # as typed
    Column("canonical_email", Text, nullable=False, unique=True),  # as compared
    Column("name", Text),
    Column("locale", Text, nullable=False),
    Column("status", Text, nullable=False),  # pending until the address is verified, then active
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("email_verified_at", DateTime(timezone=True)),
)

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

session = Table(
    "session",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("account_id", Uuid, ForeignKey("account.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True)),
)

refresh_token = Table(
    "refresh_token",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("session_id", Uuid, ForeignKey("session.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("used_at", DateTime(timezone=True)),
)

outbox = Table(
    "outbox",
    metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),  # order of sending
    Column("id", Uuid, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("subject", Uuid, nullable=False),  # the user; events of one are sent in order
    Column("data", JSONB, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("sent_at", DateTime(timezone=True)),
)
Index("outbox_occurred_at", outbox.c.occurred_at, postgresql_using="brin")
Index("outbox_unsent", outbox.c.position, postgresql_where=outbox.c.sent_at.is_(None))

relayed_topic = Table(
    "relayed_topic",
    metadata,
    Column("name", Text, primary_key=True),
    Column("topic_id", Text, nullable=False),
)

processed_event = Table(
    "processed_event",
    metadata,
    Column("function", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("claimed_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("done_at", DateTime(timezone=True)),
)
