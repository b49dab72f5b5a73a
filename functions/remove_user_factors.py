"""Remove all factors of a user except the password, for administrators."""

from uuid import UUID

from sqlalchemy import delete, select
from typing_extensions import TypedDict

from shared.events.outbox import announce
from shared.events.types import FactorsRemoved
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import first_factor, second_factors, sessions
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import account, passkey
from shared.runtime.problems import NoSuchItem, Problem
from shared.users import profiles


class OwnFactors(Problem):
    status = 409
    title = "Administrators cannot remove their own factors here"
    detail = "Nothing was changed. Remove them one by one, or ask another administrator."


class RemovedFactors(TypedDict):
    first_factor_code: str | None
    """An account with a role needs it to set up the next factor; shown only once, valid for 24 hours."""


@http_function(
    "DELETE",
    "/api/v1/users/{user_id}/factors",
    scaling=Scaling("database", max_pods=1),  # hardly ever called
    role="admin",
    recent_login=True,
    problems=[NoSuchItem, OwnFactors],
)
def remove_user_factors(user_id: UUID, caller: Caller) -> RemovedFactors:
    """Remove all factors of a user except the password.

    For a user who has lost the authenticator app, recovery codes and passkeys. Confirm their identity by other means
    first. All sessions end, and the user is notified by mail.

    An account with a role needs `first_factor_code` to set up its next factor: hand it over in person. It is shown only
    once and valid for 24 hours; calling this again returns another. It is null for an account without a role.
    """
    if user_id == caller.user_id:
        raise OwnFactors
    with change(caller, user_id) as connection:
        sessions.end_all(connection, user_id)
        has_role = connection.scalar(select(account.c.roles != []).where(account.c.id == user_id))
        removed = connection.execute(delete(passkey).where(passkey.c.account_id == user_id)).rowcount
        if not second_factors.remove(connection, user_id) and not removed and not has_role:
            raise NoSuchItem
        code = first_factor.issue_code(connection, user_id) if has_role else None
        announce(connection, FactorsRemoved(user_id=user_id, actor_id=caller.user_id))
        profiles.refresh(connection, user_id)
    return RemovedFactors(first_factor_code=code)
