"""The cost of a thousand times as many accounts: p95 at 1,000,000 and at 1,000, in turns on one PostgreSQL.

Takes ten minutes, most of them to create the accounts, and 6 GB of PostgreSQL's disk. It empties Redis, so that each
request is a miss.
"""

import contextlib
import http.client
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

from redis import Redis
from sqlalchemy import Engine, create_engine, make_url, text

from functions.login_with_passkey import AMR
from knative.local.servers import LOOPBACK
from shared.framework import pages
from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.identity import access_tokens
from shared.identity.access_tokens import Caller
from shared.runtime.settings import settings
from tests.bench import client, servers
from tests.bench.figures import Figure, beside
from tests.bench.people import PASSWORD

SMALL, LARGE = 1_000, 1_000_000
RUNS = 5
REQUESTS = 250
"""Requests per run and size. Fewer than the usable accounts among 1,000, so that each account is used once."""
SEARCHES: Sequence[tuple[dict[str, str], dict[str, str]]] = (
    ({}, {}),
    ({"status": "active"}, {"status": "active"}),
    ({"email": "s"}, {"email": "s"}),  # a quarter of all
    ({"email": "s"}, {"email": "seoyeon.kim1"}),  # one in a thousand, all of them old accounts
    ({"name": "김"}, {"name": "김"}),  # a fifth of all
    ({"name": "김"}, {"name": "김서연"}),  # one in a hundred
)
"""The searches at 1,000 and at 1,000,000 accounts. Each fills a page of 100."""


class _Request(NamedTuple):
    query: str = ""
    token: str = ""
    body: Any = None


Prepare = Callable[[Engine], Sequence[_Request]]


def measure() -> list[Figure]:
    load_all()
    with _database(SMALL) as small, _database(LARGE) as large:

        def growth(name: str, function: str, at_small: Prepare, at_large: Prepare) -> Figure:
            pairs = _p95s(function, (small, at_small), (large, at_large))
            return beside(f"growth_{name}", "ms (p95)", "<= 1.2", pairs)

        searches_at_small, searches_at_large = (_searches(queries) for queries in zip(*SEARCHES, strict=True))
        return [
            growth("login", "login", _log_ins, _log_ins),
            growth("get_profile", "get_profile", _of_users, _of_users),
            growth("list_users", "list_users", searches_at_small, searches_at_large),
            growth("export", "export_data", _of_users, _of_users),
        ]


def _p95s(function: str, small: tuple[Engine, Prepare], large: tuple[Engine, Prepare]) -> list[tuple[float, float]]:
    """Return the p95 in milliseconds of each run at the large and the small size. Their requests alternate.

    The first run is a warm-up.
    """
    pairs = []
    redis = Redis.from_url(os.environ["REDIS_URL"])
    with _asker(function, large[0]) as ask_large, _asker(function, small[0]) as ask_small:
        for _ in range(RUNS + 1):
            redis.flushdb()
            requests = zip(large[1](large[0]), small[1](small[0]), strict=False)
            took = [(ask_large(one), ask_small(other)) for one, other in requests]
            at_large, at_small = (sorted(each) for each in zip(*took, strict=True))
            pairs.append((at_large[len(took) * 95 // 100], at_small[len(took) * 95 // 100]))
    return pairs[1:]


@contextmanager
def _asker(function: str, database: Engine) -> Iterator[Callable[[_Request], float]]:
    """Yield a callable that sends a request to a function on a database and returns the milliseconds it took."""
    operation = HTTP_FUNCTIONS[function]
    unlimited = {"DATABASE_URL": _url(database), "RATE_LIMIT_EXEMPT_NETWORKS": f"{LOOPBACK}/32"}
    with servers.function(function, **unlimited)() as server:
        connection = http.client.HTTPConnection(LOOPBACK, server.port)
        connection.sock = client.connect((LOOPBACK, server.port))

        def milliseconds(request: _Request) -> float:
            headers = {"X-Forwarded-For": LOOPBACK, "Content-Type": "application/json"}
            if request.token:
                headers["Authorization"] = f"Bearer {request.token}"
            body = request.body and json.dumps(request.body)
            began = time.perf_counter()
            connection.request(operation.method, operation.path + request.query, body, headers)
            response = connection.getresponse()
            content = response.read()
            took = time.perf_counter() - began
            if response.status != 200:
                sys.exit(f"{function} answered {response.status}: {content.decode()}")
            return took * 1000

        with contextlib.closing(connection):
            yield milliseconds


@contextmanager
def _database(accounts: int) -> Iterator[Engine]:
    """Yield a new database with this many accounts."""
    server_url = settings().privileged_database_url
    url = make_url(server_url).set(drivername="postgresql+pg8000")
    name = f"aegis_growth_{accounts}"
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    database = create_engine(url.set(database=name))
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            environment = os.environ | {"DATABASE_URL": _url(database), "OWNER_DATABASE_URL": ""}
            for command in (["shared.postgresql.migrate"], ["tests.bench.accounts", str(accounts)]):
                subprocess.run([sys.executable, "-m", *command], env=environment, check=True)
            yield database
        finally:
            database.dispose()
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


def _url(database: Engine) -> str:
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


def _rows(database: Engine, query: str) -> Sequence[Any]:
    with database.connect() as connection:
        return connection.execute(text(query), {"requests": REQUESTS}).all()


def _log_ins(database: Engine) -> list[_Request]:
    """Return log-ins of random users of the whole year without a second factor."""
    query = """
        SELECT email FROM account LEFT JOIN totp ON account_id = id
        WHERE status = 'active' AND account_id IS NULL ORDER BY random() LIMIT :requests
    """
    return [_Request(body={"email": email, "password": PASSWORD}) for (email,) in _rows(database, query)]


def _of_users(database: Engine) -> list[_Request]:
    """Return requests in sessions of random users of the whole year."""
    query = """
        SELECT account_id, id FROM (
            SELECT DISTINCT ON (account_id) account_id, session.id FROM session JOIN account ON account.id = account_id
            WHERE status = 'active' AND ended_at IS NULL AND last_used_at > now() - interval '13 days'
              AND expires_at > now() + interval '1 hour' AND roles = '{}'
        ) AS live ORDER BY random() LIMIT :requests
    """
    return [_Request(token=_token(row)) for row in _rows(database, query)]


def _searches(queries: Sequence[dict[str, str]]) -> Prepare:
    """Alternate searches with pages from the older half, by many administrators because of their rate limits."""

    def prepare(database: Engine) -> list[_Request]:
        older = """
            SELECT id FROM (
                SELECT id FROM account ORDER BY id LIMIT (SELECT count(*) / 2 - 100 FROM account) OFFSET 100
            ) AS older ORDER BY random() LIMIT :requests
        """
        administrators = """
            SELECT account_id, session.id FROM session JOIN account ON account.id = account_id WHERE roles <> '{}'
        """
        tokens = [_token(row, ("admin",)) for row in _rows(database, administrators)]
        deep = [{"cursor": pages.encode(last)} for (last,) in _rows(database, older)]
        wanted = [query for last in deep for query in (*queries, last)][:REQUESTS]
        return [
            _Request("?" + urlencode({"limit": 100, **query}), token)
            for query, token in zip(wanted, itertools.cycle(tokens), strict=False)
        ]

    return prepare


def _token(session: Any, roles: tuple[str, ...] = ()) -> str:
    now = int(time.time())
    return access_tokens.issue(
        Caller(user_id=session.account_id, session_id=session.id, roles=roles, amr=tuple(AMR), authenticated_at=now)
    )
