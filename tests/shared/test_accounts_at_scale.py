"""The accounts that growth is measured with are accounts like any other."""

import pytest
from sqlalchemy import func, select

from shared.identity.factors import has_any
from shared.postgresql.tables import account, metadata
from shared.postgresql.transactions import transaction
from tests.bench import accounts
from tests.bench.people import PASSWORD
from tests.conftest import User, call, strong_session_of

ACCOUNTS = 1000
NOT_MADE = {
    *("relayed_topic", "processed_event", "dead_letter", "challenge", "phone_verification", "stored_answer"),
    *("purged_account", "backup"),
}
"""Tables that none of what is measured reads by account, or whose rows live for minutes."""


@pytest.mark.usefixtures("own_database")
def test_one_of_many_accounts_logs_in_reads_the_profile_and_is_found_by_an_administrator() -> None:
    accounts.load(ACCOUNTS)
    query = select(*account.c["id", "email", "name"]).where(
        account.c.status == "active", account.c.name.is_not(None), ~has_any(account.c.id)
    )
    with transaction() as connection:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table)) for table in metadata.sorted_tables
        }
        user = connection.execute(query.order_by(account.c.id.desc())).first()
        admin = connection.execute(select(*account.c["id", "email"]).where(account.c.roles != [])).first()
    assert counts["account"] == counts["credential"] == ACCOUNTS
    assert {name for name, count in counts.items() if not count} == NOT_MADE
    assert user
    assert admin

    logged_in = call("login", body={"email": user.email, "password": PASSWORD})
    assert logged_in.status_code == 200, logged_in.text
    assert call("get_profile", logged_in.json).json["name"] == user.name
    exported = call("export_data", logged_in.json).json
    assert "com.aegis.user.email_verified.v1" in [event["type"] for event in exported["audit"]]

    administrator = strong_session_of(User(admin.id, admin.email))
    (found,) = call("list_users", administrator, query={"email": user.email}).json["users"]
    assert found["id"] == str(user.id)
