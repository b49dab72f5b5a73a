"""The needs of ten million daily users, from the capacity of a pod: tables of docs/capacity.md and docs/autoscaling.md.

    python -m tests.bench.model

prints them. tests/test_docs.py checks that the documents have the same tables.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from functions import clean_up
from shared.events import kafka
from shared.framework.registry import load_all, uses
from shared.identity import sessions
from shared.postgresql import partitions
from shared.runtime.resource_names import function_name
from tests.bench import measured
from tests.bench.measured import Measured, function_of
from tests.knative.environments import functions_of, objects_of, scaling, variables

DAILY_USERS = 10_000_000
ENOUGH_MILLIONS = 30
PEAK = 3
"""The load of the busiest minutes of a day relative to its mean."""
UTILIZATION = 0.7
"""target-utilization-percentage. The rest is for the next burst."""
DAY_SECONDS = 86_400

A_DAY = {
    "get_profile": 16,
    "get_profile, missed": 4,
    "refresh_token": 6,
    "login": 0.2,
    "logout": 0.1,
    "update_profile": 0.02,
    "list_sessions": 0.02,
    "login_with_second_factor": 0.01,
    "register": 0.006,
    "verify_email": 0.005,
    "request_phone_code": 0.004,
    "verify_phone": 0.003,
    "revoke_session": 0.002,
    "request_email_verification": 0.001,
    "get_user": 0.001,
    "jwks": 0.001,
    "list_users": 0.0005,
    "withdraw": 0.0005,
    "export_data": 0.0002,
    "list_audit": 0.0002,
}
"""Requests of a daily user in a day."""
MAILED = ("register", "request_email_verification", "verify_phone", "withdraw")
TEXTED = ("request_phone_code",)
"""Functions whose events go to send_email and to send_sms."""

ROWS = {
    "used refresh tokens": (219, sessions.LIFETIME.days),
    "sessions": (320, (sessions.LIFETIME + clean_up.ENDED_SESSIONS).days),
    "events in the outbox": (420, partitions.KEPT.days),
    "processed events": (267, partitions.KEPT.days),
    "audit trail, of a year": (355, 365),
}
"""Bytes of a row with its indexes, measured with 60,000 accounts, and the days for which it is kept."""
CACHE_BYTES = 1_320
"""Redis memory of a user who reads their profile: four entries for a minute. 27,166 entries took 8.9 MB."""
RELAYED = 5_895
"""Events a second that a relay sends (docs/performance.md)."""
CLEANED = 1_780_000
"""Used refresh tokens that the daily run of clean_up deletes in its 20 seconds: measured, 89,000 a second."""
POSTGRES_CORES, DISK_BYTES = 2, 100 * 2**30
PGBOUNCERS, CLIENTS, POOL = 2, 1000, 40
REDIS_MASTERS, REDIS_BYTES = 3, 768 * 2**20
"""Production's servers, as in its manifests. A PgBouncer and a Redis use one core each."""


@dataclass(frozen=True)
class Part:
    """The load of a function at the peak. get_profile has two parts."""

    name: str
    rate: float
    """Requests a second."""
    figure: Measured

    @property
    def busy_pods(self) -> float:
        return self.rate / self.figure.capacity(self.name).rate


@dataclass(frozen=True)
class Limit:
    """A limited resource."""

    what: str
    needed: float
    there: float
    unit: str
    lifted: str

    @property
    def millions(self) -> float:
        """Return the millions of daily users at which it is exhausted."""
        return DAILY_USERS * self.there / self.needed / 1e6


def parts() -> list[Part]:
    figures = measured.read()
    rates = {name: count * DAILY_USERS * PEAK / DAY_SECONDS for name, count in A_DAY.items()}
    rates["send_email"] = sum(rates[name] for name in MAILED)
    rates["send_sms"] = sum(rates[name] for name in TEXTED)
    return [Part(name, rates[name], figures[name]) for name in measured.FUNCTIONS]


def services() -> dict[str, dict[str, Any]]:
    """Return production's Knative Services by function."""
    return {function_name(one["metadata"]["name"]): one for one in functions_of(objects_of("production"))}


def busy_pods(asked: Iterable[Part]) -> Mapping[str, float]:
    """Return how many fully busy pods each function needs."""
    pods: dict[str, float] = defaultdict(float)
    for part in asked:
        pods[function_of(part.name)] += part.busy_pods
    return pods


def pods_at_peak(busy: float) -> int:
    return math.ceil(busy / UTILIZATION)


def clients(busy: Mapping[str, float]) -> int:
    """Return the connections to PgBouncer: one per thread of functions that use the database."""
    load_all()
    there = services()
    return sum(
        pods_at_peak(pods) * int(variables(there[name])["THREADS"])
        for name, pods in busy.items()
        if "database" in uses(name)
    )


def announced(asked: Iterable[Part]) -> float:
    """Events a second."""
    return sum(part.rate * part.figure.events for part in asked)


def rows_a_day(asked: Iterable[Part]) -> Mapping[str, float]:
    """Return the rows a day of tables that grow with use."""
    by_name = {part.name: part.rate * DAY_SECONDS / PEAK for part in asked}
    events = announced(asked) * DAY_SECONDS / PEAK
    return {
        "used refresh tokens": by_name["refresh_token"],
        "sessions": by_name["login"] + by_name["login_with_second_factor"],
        "events in the outbox": events,
        "processed events": by_name["send_email"] + by_name["send_sms"],
        "audit trail, of a year": events,
    }


def limits(asked: Sequence[Part]) -> list[Limit]:
    """Return the limits, those that are reached first at the start."""

    def total(cost: str) -> float:
        """Return the total cost of the requests of a second."""
        return float(sum(part.rate * getattr(part.figure, cost) for part in asked))

    there, busy = services(), busy_pods(asked)
    by_name = {part.name: part for part in asked}
    delivered = {name: kafka.PARTITIONS * by_name[name].figure.tries[0].rate for name in ("send_email", "send_sms")}
    written = rows_a_day(asked)
    kept = sum(written[what] * days * size for what, (size, days) in ROWS.items())
    counting = sum(part.rate * part.figure.redis for part in asked if function_of(part.name) == "get_profile") / 1000
    cached = CACHE_BYTES * by_name["get_profile, missed"].rate * 60
    in_progress = sum(part.rate / part.figure.tries[0].rate for part in asked if part.figure.transactions)
    found = [
        Limit(f"busy pods of {name}", pods, int(scaling(there[name])["max-scale"]), "pods", "`max-scale`")
        for name, pods in busy.items()
    ]
    found += [
        Limit(f"deliveries to {name}", by_name[name].rate, most, "a second", "more partitions (`PARTITIONS`)")
        for name, most in delivered.items()
    ]
    found += [
        Limit(
            "used refresh tokens that clean_up deletes",
            written["used refresh tokens"] / 1e6,
            CLEANED / 1e6,
            "million a day",
            "more runs of clean_up a day",
        ),
        Limit("PostgreSQL's volume", kept / 1e9, DISK_BYTES / 1e9, "GB", "a larger volume"),
        Limit("PostgreSQL's processors", total("postgres") / 1000, POSTGRES_CORES, "cores", "its CPU limit"),
        Limit("connections to PostgreSQL", in_progress, PGBOUNCERS * POOL, "in use", "larger pools"),
        Limit("PgBouncer's processors", total("pgbouncer") / 1000, PGBOUNCERS, "cores", "more pods"),
        Limit("connections to PgBouncer", clients(busy), PGBOUNCERS * CLIENTS, "open", "more pods"),
        # All counters of a function share a hash tag, and so one master.
        Limit("Redis counters of get_profile", counting, 1, "cores", "one hash tag per account"),
        Limit("memory of Redis", cached / 1e9, REDIS_MASTERS * REDIS_BYTES / 1e9, "GB", "more masters"),
        Limit("the relay", announced(asked), RELAYED, "events a second", "more than one leader"),
    ]
    return sorted(found, key=lambda limit: limit.millions)


def one_pod() -> str:
    """Return the table of docs/autoscaling.md."""
    lines = []
    for name, figure in measured.read().items():
        chosen = figure.capacity(name)
        costs = (figure.function, figure.postgres, figure.pgbouncer, figure.redis)
        lines.append(
            (
                name,
                f"{chosen.rate:,.0f}",
                chosen.connections,
                f"{chosen.p95:.0f}",
                f"{chosen.busy:.0%}".replace("%", " %"),
                *(f"{cost:.2f}" for cost in costs),
            )
        )
    head = (
        "function",
        "requests/s",
        "connections",
        "p95, ms",
        "node busy",
        "function CPU, ms",
        "PostgreSQL",
        "PgBouncer",
        "Redis",
    )
    return table(head, lines)


def demand() -> str:
    """Return the first table of docs/capacity.md."""
    asked, there = parts(), services()
    busy = busy_pods(asked)
    lines = [
        (
            part.name,
            f"{A_DAY[part.name]:g}" if part.name in A_DAY else "",
            f"{part.rate:,.1f}" if part.rate < 10 else f"{part.rate:,.0f}",
            f"{part.busy_pods:.2f}",
            pods_at_peak(busy[function_of(part.name)]) if part.name in there else "",
            scaling(there[part.name])["max-scale"] if part.name in there else "",
            *(
                f"{part.rate * each:,.0f}"
                for each in (part.figure.transactions, part.figure.commands, part.figure.events)
            ),
        )
        for part in asked
    ]
    sums = [
        f"{sum(part.rate * getattr(part.figure, what) for part in asked):,.0f}"
        for what in ("transactions", "commands", "events")
    ]
    total = f"{sum(part.rate for part in asked):,.0f}"
    lines.append(("all", "", total, "", sum(map(pods_at_peak, busy.values())), "", *sums))
    head = (
        "function",
        "per user and day",
        "requests/s",
        "busy pods",
        "pods",
        "max-scale",
        "transactions/s",
        "Redis commands/s",
        "events/s",
    )
    return table(head, lines)


def stored() -> str:
    """Return the second one."""
    written = rows_a_day(parts())
    lines = [
        (
            what,
            f"{written[what]:,.0f}",
            days,
            f"{written[what] * days:,.0f}",
            size,
            number(written[what] * days * size / 1e9),
        )
        for what, (size, days) in ROWS.items()
    ]
    return table(("rows of", "a day", "days", "rows", "bytes each", "GB"), lines)


def bottlenecks() -> str:
    """Return the third one, without functions that have pods to spare."""
    lines = [
        (limit.what, f"{number(limit.needed)} {limit.unit}", number(limit.there), number(limit.millions), limit.lifted)
        for limit in limits(parts())
        if limit.unit != "pods" or limit.millions < ENOUGH_MILLIONS
    ]
    return table(("resource", "at the peak", "available", "exhausted at, million users", "remedy"), lines)


def number(value: float) -> str:
    """Format with two significant digits."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def table(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    rows = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])


if __name__ == "__main__":
    print(one_pod(), demand(), stored(), bottlenecks(), sep="\n\n")
