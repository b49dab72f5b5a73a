"""What one pod of each function takes, as docs/capacity.json has it from `make bench-cluster`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.framework.registry import HTTP_FUNCTIONS, load_all

FIGURES = Path(__file__).parents[2] / "docs" / "capacity.json"
FUNCTIONS = (
    "get_profile",
    "get_profile, missed",
    "jwks",
    "login",
    "register",
    "verify_email",
    "withdraw",
    "refresh_token",
    "logout",
    "update_profile",
    "list_sessions",
    "revoke_session",
    "request_email_verification",
    "request_phone_code",
    "verify_phone",
    "login_with_second_factor",
    "list_users",
    "get_user",
    "list_audit",
    "export_data",
    "record_audit",
    "send_email",
    "send_sms",
)
"""Those that carry load; get_profile twice, as it misses the cache at times."""
ENOUGH = 0.95
"""Of the most requests a second: more connections than reach it only wait longer."""
READ_MILLISECONDS, MILLISECONDS = 300, 1000
"""The objectives of docs/alerts.md, for the 95th percentile; deliveries of events have none."""


@dataclass(frozen=True)
class Try:
    """What one pod did over so many connections, each of which sends its next request when it has the answer."""

    connections: int
    rate: float
    """Answers a second."""
    p95: float
    """Milliseconds."""
    busy: float
    """Of the node's processors: 1 where the node, not the pod, was the limit."""


@dataclass(frozen=True)
class Measured:
    """Of one pod. What a request costs is the mean over all tries."""

    tries: list[Try]
    function: float
    """Milliseconds of CPU for a request: of the function's process, and of each server."""
    postgres: float
    pgbouncer: float
    redis: float
    transactions: float
    """Of PostgreSQL, for a request."""
    commands: float
    """Of Redis, those in scripts included."""
    events: float

    def capacity(self, name: str) -> Try:
        """The fewest connections that reach about the most requests a second within the objective."""
        within = [one for one in self.tries if one.p95 <= objective(name)]
        return next(one for one in within if one.rate >= ENOUGH * max(one.rate for one in within))


def function_of(name: str) -> str:
    return name.partition(",")[0]


def objective(name: str) -> float:
    """Milliseconds that the 95th percentile is to stay under."""
    load_all()
    operation = HTTP_FUNCTIONS.get(function_of(name))
    if operation is None:
        return float("inf")
    return READ_MILLISECONDS if operation.method == "GET" else MILLISECONDS


def read() -> dict[str, Measured]:
    figures = json.loads(FIGURES.read_text("utf-8"))
    return {
        name: Measured(**figure | {"tries": [Try(*one) for one in figure["tries"]]}) for name, figure in figures.items()
    }


def write(figures: Mapping[str, Measured]) -> None:
    content = {}
    for name in FUNCTIONS:
        if figure := figures.get(name):
            content[name] = asdict(figure) | {"tries": [[*asdict(one).values()] for one in figure.tries]}
    lines = (f" {json.dumps(name)}: {json.dumps(figure)}" for name, figure in content.items())
    FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
