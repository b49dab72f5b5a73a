"""Read the caller's profile."""

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity.access_tokens import Caller
from shared.runtime.problems import Unauthenticated
from shared.users import profiles
from shared.users.profiles import Profile


def cache_key(caller: Caller) -> str:
    return profiles.key(caller.user_id)


@http_function(
    "GET",
    "/api/v1/users/me",
    scaling=Scaling("cache", max_pods=10),  # the maximum of the guide's HPA (4.7)
    cached=cache_key,
)
def get_profile(caller: Caller, cached: bytes | None) -> Profile | bytes:
    """Read the caller's profile.

    `new_email` replaces `email` once it is verified. `phone` is a verified number. `second_factor` is true if an
    authenticator app is active. `business` is null until one is submitted.
    """
    if cached:
        return cached
    # Imported on a cache miss: a cached read does not use the database.
    from shared.postgresql.transactions import transaction

    with transaction() as connection:
        profile = profiles.read(connection, caller.user_id)
    if profile is None:
        raise Unauthenticated
    profiles.put_if_absent(profile)
    return profile
