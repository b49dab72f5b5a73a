"""Suspend or reinstate a user, or change their roles, for administrators."""

from typing import Annotated, Any, Literal, cast
from uuid import UUID

from pydantic import Field
from sqlalchemy import Connection, update

from shared.events.outbox import announce
from shared.events.types import RolesChanged, UserReinstated, UserSuspended
from shared.framework.http_function import http_function
from shared.http.request import Reply, require_match
from shared.identity import sessions
from shared.identity.access_tokens import Caller
from shared.identity.administrators import ADMIN
from shared.identity.changes import change
from shared.postgresql.tables import account
from shared.runtime.problems import FieldError, InvalidRequest, NoSuchItem, Problem
from shared.text.fields import ABSENT, RequestBody
from shared.users import profiles, users
from shared.users.users import UserDetails


class UserUpdate(RequestBody):
    status: Annotated[Literal["active", "suspended"], Field(description="`active` also ends a withdrawal.")] = ABSENT
    roles: Annotated[list[Literal["admin"]], Field(max_length=10, description="All roles of the user.")] = ABSENT


class OwnAccount(Problem):
    status = 409
    title = "Administrators cannot lock themselves out"
    detail = "Nothing was changed. Another administrator can suspend you or take the role from you."


class NoFactor(Problem):
    status = 409
    title = "The account has no second factor"
    detail = "Nothing was changed. Only a user with an authenticator app or a passkey can have a role."


@http_function(
    "PATCH",
    "/api/v1/users/{user_id}",
    role="admin",
    recent_login=True,
    problems=[NoSuchItem, OwnAccount, NoFactor],
)
def update_user(user_id: UUID, body: UserUpdate, if_match: str | None, caller: Caller) -> Reply[UserDetails]:
    """Suspend or reinstate a user, or change their roles.

    The body is a JSON merge patch (RFC 7396). Suspending a user or changing their roles ends all of their sessions at
    once, because access tokens carry the roles. Lifting the suspension of a user who had withdrawn leaves them
    withdrawn. The status of an account with an unverified address cannot be changed. A role requires a second factor.
    """
    with change(caller, user_id) as connection:
        user = users.read(connection, user_id)
        if user is None:
            raise NoSuchItem
        require_match(if_match, users.version(user))
        changes = _changes(user, body)
        if caller.user_id == user_id and (changes.get("status") or ADMIN not in changes.get("roles", [ADMIN])):
            raise OwnAccount
        if changes.get("roles") and not (user["second_factor"] or user["passkeys"]):
            raise NoFactor
        if changes:
            connection.execute(update(account).where(account.c.id == user_id).values(changes))
            if changes.get("status") == "suspended" or "roles" in changes:
                sessions.end_all(connection, user_id)
                user["sessions"] = 0
            _announce(connection, user_id, changes, caller.user_id)
            profiles.refresh(connection, user_id)
            user = cast(UserDetails, {**user, **changes})
    return Reply(user, {"ETag": users.version(user)})


def _changes(user: UserDetails, body: UserUpdate) -> dict[str, Any]:
    """Return the columns that the patch changes, with their new values.

    Raises:
        InvalidRequest: the user's status or roles cannot be changed.
    """
    changes: dict[str, Any] = {}
    is_pending = user["status"] == "pending"
    if body.status and body.status != user["status"]:
        if is_pending:
            detail = "The address is not verified yet. Only its owner can make the account active."
            raise InvalidRequest(errors=[FieldError(pointer="/status", code="not_verified", detail=detail)])
        changes["status"] = body.status
        if body.status == "active" and user["status"] == "withdrawn":
            changes["withdrawn_at"] = None
        elif body.status == "active" and user["withdrawn_at"]:
            changes["status"] = "withdrawn"  # the user withdrew before the suspension
    if body.roles is not None and (roles := sorted(set(body.roles))) != user["roles"]:
        if is_pending:
            detail = "The address is not verified yet, so the owner of the account is unknown."
            raise InvalidRequest(errors=[FieldError(pointer="/roles", code="not_verified", detail=detail)])
        changes["roles"] = roles
    return changes


def _announce(connection: Connection, user_id: UUID, changes: dict[str, Any], actor_id: UUID) -> None:
    match changes.get("status"):
        case "suspended":
            announce(connection, UserSuspended(user_id=user_id, actor_id=actor_id))
        case "active" | "withdrawn":
            announce(connection, UserReinstated(user_id=user_id, actor_id=actor_id))
    if "roles" in changes:
        announce(connection, RolesChanged(user_id=user_id, roles=changes["roles"], actor_id=actor_id))
