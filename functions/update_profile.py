"""Change the caller's name or language."""

from typing import Any

from sqlalchemy import update

from shared.events.outbox import announce
from shared.events.types import ProfileUpdated
from shared.framework.http_function import http_function
from shared.http.request import etag, json_bytes, require_match
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import account
from shared.runtime.problems import Unauthenticated
from shared.text.fields import ABSENT, Locale, Name, RequestBody
from shared.users import profiles
from shared.users.profiles import Profile


class ProfilePatch(RequestBody):
    """A JSON merge patch (RFC 7396): absent members stay unchanged; a null name removes the name."""

    name: Name | None = ABSENT
    locale: Locale = ABSENT


@http_function("PATCH", "/api/v1/users/me")
def update_profile(caller: Caller, body: ProfilePatch, if_match: str | None) -> Profile:
    """Change the caller's profile.

    The body is a JSON merge patch (RFC 7396): absent members stay unchanged, and a null name removes the name. Returns
    the new profile. To avoid overwriting a concurrent change, send the profile's ETag in If-Match: if the profile has
    changed since, the answer is 412.
    """
    given: dict[str, Any] = body.model_dump(exclude_unset=True)
    with change(caller) as connection:
        before = profiles.read(connection, caller.user_id)
        if before is None:
            raise Unauthenticated
        require_match(if_match, etag(json_bytes(before)))
        changes = {field: value for field, value in given.items() if dict(before)[field] != value}
        if changes:
            connection.execute(update(account).where(account.c.id == caller.user_id).values(changes))
            announce(connection, ProfileUpdated(user_id=caller.user_id, fields=sorted(changes)))
        profile: Profile = {**before, **changes}  # type: ignore[typeddict-item]  # validated by the model
        profiles.put(profile)  # even without a change: an earlier try may have died between its commit and this
    return profile
