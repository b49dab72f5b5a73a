"""What operations ask of PostgreSQL and leave in Redis, over a whole tour of the service."""

import contextlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import urllib3
from sqlalchemy import event

from shared.framework.http_function import path_pattern
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.http.request import json_bytes
from shared.identity import access_tokens
from shared.postgresql import pool
from shared.postgresql.transactions import transaction
from shared.redis import cache
from shared.users import profiles
from tests import tour
from tests.conftest import DATA, client, wait_for

TWICE = {("login_with_second_factor", "outbox")}
"""Insertions by two who do not know of each other: a recovery code was used, and a session has begun."""


class Toured(NamedTuple):
    """What was seen on the tour."""

    statements: dict[str, list[list[str]]]
    """Of each operation, and of each of its requests, in order; one for many rows as often as for a row."""
    left_old_profiles: list[str]
    """The operations after which the cache still had the profile from before."""


@pytest.fixture
def toured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Toured]:
    """The tour, whose operations this process then performs itself."""
    load_all()
    operations = {
        (operation.method, re.compile(path_pattern(operation.path))): operation.name
        for operation in HTTP_FUNCTIONS.values()
    }
    executed: list[str] = []
    recorded = Toured(defaultdict(list), [])
    callers: set[UUID] = set()

    def request(method: str, url: str, json: Any = None, headers: Any = None) -> Any:
        path = urlsplit(url).path
        for (own_method, pattern), operation in operations.items():
            if own_method == method and pattern.fullmatch(path):
                if token := headers.get("Authorization", "").removeprefix("Bearer "):
                    callers.add(access_tokens.verify(token).user_id)
                if method != "GET":
                    for user_id in callers:
                        cache.attempt(("SET", profiles.key(user_id), stored_profile(user_id)))
                executed.clear()
                answer = client(operation).open(
                    url, method=method, json=json, headers={**headers, "X-Forwarded-For": "127.0.0.1"}
                )
                recorded.statements[operation].append([*executed])
                if any(keeps_an_old_profile(user_id) for user_id in callers):
                    recorded.left_old_profiles.append(operation)
                return SimpleNamespace(status=answer.status_code, data=answer.data)
        return urllib3.request(method, url, json=json, headers=headers)

    def record(_: object, __: object, statement: str, parameters: Any, ___: object, is_many: bool) -> None:
        executed.extend([statement] * (len(parameters) if is_many else 1))

    monkeypatch.setattr(tour, "http", SimpleNamespace(request=request))
    monkeypatch.setattr(tour, "URL", os.environ["PUBLIC_URL"])
    monkeypatch.setattr(tour, "INBOX_URL", os.environ["PUBLIC_URL"])
    monkeypatch.setenv("DATA_DIR", str(DATA))
    event.listen(pool.engine(), "before_cursor_execute", record)
    yield recorded
    event.remove(pool.engine(), "before_cursor_execute", record)


def stored_profile(user_id: UUID) -> bytes:
    """A profile as the database has it; empty where the account is gone."""
    with transaction() as connection:
        profile = profiles.read(connection, user_id)
    return json_bytes(profile) if profile else b""


def keeps_an_old_profile(user_id: UUID) -> bool:
    """Whether the cache has another profile than the database."""

    def is_old() -> bool:
        (cached,) = cache.get(profiles.key(user_id))
        return bool(cached) and cached != stored_profile(user_id)

    with contextlib.suppress(AssertionError):  # the function that verifies a business may be just about to put its own
        wait_for(lambda: not is_old(), 1.0)
        return False
    return True


def test_no_operation_executes_a_statement_twice_or_leaves_an_old_profile_in_the_cache(toured: Toured) -> None:
    tour.main()
    assert HTTP_FUNCTIONS.keys() - toured.statements.keys() == {"fallback"}
    repeated = {
        (operation, statement): count
        for operation, requests in toured.statements.items()
        for request in requests
        for statement, count in Counter(request).items()
        if count > 1 and (operation, statement.removeprefix("INSERT INTO ").partition(" ")[0]) not in TWICE
    }
    assert repeated == {}
    assert toured.left_old_profiles == []
