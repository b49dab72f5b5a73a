"""What operations ask of PostgreSQL: each statement is a round trip, and none is taken twice."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from sqlalchemy import event

from shared.framework.http_function import path_pattern
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.postgresql import pool
from tests import tour
from tests.conftest import DATA, client

TWICE = {("login_with_second_factor", "outbox")}
"""Insertions by two who do not know of each other: a recovery code was used, and a session has begun."""

Statements = dict[str, list[list[str]]]
"""Of each operation, and of each of its requests, the statements in order; one for many rows as often as for a row."""


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statements]:
    """Of the tour, whose operations this process then performs itself."""
    load_all()
    operations = {
        (operation.method, re.compile(path_pattern(operation.path))): operation.name
        for operation in HTTP_FUNCTIONS.values()
    }
    executed: list[str] = []
    recorded: Statements = defaultdict(list)

    def request(method: str, url: str, json: Any = None, headers: Any = None) -> Any:
        path = urlsplit(url).path
        for (own_method, pattern), operation in operations.items():
            if own_method == method and pattern.fullmatch(path):
                executed.clear()
                answer = client(operation).open(
                    url, method=method, json=json, headers={**headers, "X-Forwarded-For": "127.0.0.1"}
                )
                recorded[operation].append([*executed])
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


def test_no_operation_executes_a_statement_twice(statements: Statements) -> None:
    tour.main()
    assert HTTP_FUNCTIONS.keys() - statements.keys() == {"fallback"}
    repeated = {
        (operation, statement): count
        for operation, requests in statements.items()
        for request in requests
        for statement, count in Counter(request).items()
        if count > 1 and (operation, statement.removeprefix("INSERT INTO ").partition(" ")[0]) not in TWICE
    }
    assert repeated == {}
