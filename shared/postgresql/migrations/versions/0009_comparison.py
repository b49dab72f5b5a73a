"""Compare addresses and names after case folding, so that κωστας@ and ΚΩΣΤΑΣ@ are equal.

If two existing addresses become equal, both accounts stay: either spelling finds the account verified first.
"""

import unicodedata

from alembic import op
from sqlalchemy import text

revision = "0009"
down_revision = "0008"

INDEX = """
    CREATE INDEX account_folded_name_prefix
    ON account (replace(lower(upper(normalize(name))), 'ß', 'ss') text_pattern_ops) INCLUDE (name, id, status)
"""

STORED = text("""
    SELECT id, canonical_email, new_canonical_email FROM account
    WHERE canonical_email ~ '[^[:ascii:]]' OR new_canonical_email ~ '[^[:ascii:]]'
    ORDER BY email_verified_at, id
""")
COMPARE = text("""
    UPDATE account SET canonical_email = :address
    WHERE id = :id AND NOT EXISTS (SELECT FROM account WHERE canonical_email = :address)
""")
COMPARE_NEW = text("UPDATE account SET new_canonical_email = :address WHERE id = :id")


def upgrade() -> None:
    op.execute(INDEX)
    connection = op.get_bind()
    for row in connection.execute(STORED).all():
        connection.execute(COMPARE, {"id": row.id, "address": folded(row.canonical_email)})
        if row.new_canonical_email:
            connection.execute(COMPARE_NEW, {"id": row.id, "address": folded(row.new_canonical_email)})


def folded(address: str) -> str:
    """Fold the local part of an address, unless it contains compatibility characters."""
    local, _, domain = address.rpartition("@")
    if unicodedata.normalize("NFKC", local) != local:
        return address
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", local).casefold()) + f"@{domain}"
