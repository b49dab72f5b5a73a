"""Allow a business number to be verified on only one account.

Numbers already verified on several accounts stay verified; the account that submitted first holds the number.
"""

from alembic import op

revision = "0013"
down_revision = "0012"

STATEMENTS = (
    "ALTER TABLE business ADD COLUMN holds_number boolean NOT NULL DEFAULT false",
    """
    UPDATE business SET holds_number = true
    FROM (
        SELECT DISTINCT ON (business.number) business.account_id
        FROM business JOIN account ON account.id = business.account_id
        WHERE business.status = 'verified' AND account.status <> 'withdrawn'
        ORDER BY business.number, business.submitted_at, business.account_id
    ) AS first
    WHERE business.account_id = first.account_id
    """,
    # Not on all verified rows: the previous release does not set holds_number and still verifies numbers.
    "CREATE UNIQUE INDEX business_held_number ON business (number) WHERE status = 'verified' AND holds_number",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
