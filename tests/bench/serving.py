"""Requests a second of one server, compared with only the libraries on the same cores."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from redis import Redis
from sqlalchemy import text

from shared.identity import passwords, sessions
from shared.postgresql.pool import unpooled
from shared.runtime.once import once
from shared.runtime.settings import settings
from shared.users import profiles
from tests.bench import client, people, servers
from tests.bench.figures import Figure, beside, in_turns
from tests.bench.people import PASSWORD, Person

RUNS = 5
USERS, ROUNDS = 1000, 5
LOGINS = 200


def measure() -> list[Figure]:
    try:
        return [_cached(), _miss(), _login(), _refresh(), _register()]
    finally:
        with unpooled(settings().privileged_database_url).begin() as connection:
            connection.execute(text("TRUNCATE outbox"))  # otherwise the measurement of the relay would include them


def read_profile(readers: Sequence[Person]) -> list[bytes]:
    return [reader.request("GET", "/api/v1/users/me") for reader in readers]


def fill_cache(port: int, requests: Sequence[bytes]) -> None:
    """Send these requests to a server, so that their data is in the cache for a full minute."""
    if entries := _redis().keys("aegis:{*"):
        _redis().delete(*entries)
    client.rate(port, requests)


@once
def _redis() -> Redis:
    return Redis.from_url(settings().redis_url)


def _cached() -> Figure:
    """Cached reads of profiles, compared with hello."""
    requests = read_profile(people.users(USERS))
    with servers.function("get_profile")() as ours, servers.hello()() as hello:

        def cached() -> float:
            fill_cache(ours.port, requests)
            return client.rate(ours.port, requests * ROUNDS)

        pairs = in_turns(RUNS, cached, lambda: client.rate(hello.port, requests * ROUNDS))
    return beside("get_profile_cached", "requests/s", ">= 0.75", pairs)


def _miss() -> Figure:
    """Reads of uncached profiles in cached sessions, compared with only Flask and pg8000."""
    readers = people.users(USERS)
    requests = read_profile(readers)
    bare_requests = [reader.request("GET", f"/{reader.id}") for reader in readers]
    entries = [profiles.key(reader.id) for reader in readers]
    with servers.function("get_profile")() as ours, servers.baseline("tests.bench.baselines.bare_select:app")() as bare:

        def missed() -> float:
            fill_cache(ours.port, requests)
            if _redis().delete(*entries) != USERS:
                sys.exit("The profiles are not in the cache under the expected keys.")
            return client.rate(ours.port, requests)

        pairs = in_turns(RUNS, missed, lambda: client.rate(bare.port, bare_requests))
    return beside("get_profile_miss", "requests/s", ">= 0.7", pairs)


def _login() -> Figure:
    """Log-ins, compared with only argon2id in one thread per core."""
    requests = [
        one.request("POST", "/api/v1/users/login", {"email": one.email, "password": PASSWORD})
        for one in people.users(LOGINS)
    ]
    password_hash = passwords.hash_password(PASSWORD)

    def raw() -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            list(threads.map(PasswordHasher().verify, [password_hash] * LOGINS, [PASSWORD] * LOGINS))
        return LOGINS / (time.perf_counter() - began)

    with servers.function("login")() as ours:
        pairs = in_turns(RUNS, lambda: client.rate(ours.port, requests, connections=8), raw)
    return beside("login", "logins/s", ">= 0.9", pairs)


def _refresh() -> Figure:
    """Refreshes of sessions, each with the successor of its previous token."""
    owners = people.users(USERS)
    tokens = [owner.refresh_token for owner in owners]
    with servers.function("refresh_token")() as ours:

        def refreshed() -> float:
            requests = [
                owner.request("POST", "/api/v1/users/token/refresh", {"refresh_token": token})
                for owner, token in zip(owners, tokens, strict=True)
            ]
            tokens[:] = map(sessions.successor, tokens)
            return client.rate(ours.port, requests)

        return _alone("refresh", "requests/s", refreshed)


def _register() -> Figure:
    """Registrations without the cost of the hash: the same code with a nearly free argon2id."""
    with servers.function("register", "tests.bench.baselines.without_hash")() as ours:

        def registered() -> float:
            requests = [
                one.request("POST", "/api/v1/users", {"email": one.email, "password": PASSWORD})
                for one in people.strangers(USERS)
            ]
            return client.rate(ours.port, requests)

        return _alone("register", "requests/s", registered)


def _alone(figure: str, unit: str, measured: Callable[[], float]) -> Figure:
    """Return a figure without a baseline. The first run is a warm-up."""
    measured()
    values = [measured() for _ in range(RUNS)]
    median = statistics.median(values)
    return Figure(figure, median, unit, None, None, "", RUNS, (max(values) - min(values)) / median)
