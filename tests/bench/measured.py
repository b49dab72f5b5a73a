"""The capacity of one pod of each function, in docs/capacity.json, measured by `make bench-cluster`."""

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
    "send_email",
    "send_sms",
)
"""Functions with significant load. get_profile is listed twice, as it sometimes misses the cache."""
ENOUGH = 0.95
"""Share of the highest rate: connections beyond those that reach it only wait longer."""
READ_MILLISECONDS, MILLISECONDS = 300, 1000
"""The objectives of docs/alerts.md, for the 95th percentile; deliveries of events have none."""


@dataclass(frozen=True)
class Try:
    """The result of one pod with this many connections, each of which sends its next request after the answer."""

    connections: int
    rate: float
    """Answers a second."""
    p95: float
    """Milliseconds."""
    busy: float
    """Utilisation of the node's processors: 1 if the node, not the pod, was the limit."""


@dataclass(frozen=True)
class Measured:
    """The figures of one pod. Costs per request are means over all tries."""

    tries: list[Try]
    function: float
    """Milliseconds of CPU per request: of the function's process, and below of each server."""
    postgres: float
    pgbouncer: float
    redis: float
    transactions: float
    """PostgreSQL transactions per request."""
    commands: float
    """Redis commands per request, including those in scripts."""
    events: float

    def capacity(self, name: str) -> Try:
        """Return the try with the fewest connections that nearly reaches the highest rate within the objective."""
        within = [one for one in self.tries if one.p95 <= objective(name)]
        return next(one for one in within if one.rate >= ENOUGH * max(one.rate for one in within))


def function_of(name: str) -> str:
    return name.partition(",")[0]


def objective(name: str) -> float:
    """Return the limit of the 95th percentile in milliseconds."""
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
