"""Send requests from within the cluster. Reads commands from standard input and answers each line with one line."""

import json
import sys
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import func, select, text

from shared.postgresql.tables import account
from shared.postgresql.transactions import transaction
from shared.runtime.settings import settings
from tests.bench import accounts, client
from tests.bench.cluster.traffic import TRAFFIC

ACCOUNTS = 50_000
"""For administrators' searches: as many as fit on a small volume."""
AT_ONCE = 500
"""People are created in groups, to keep statements short."""
KOURIER = "kourier-internal.kourier-system.svc.cluster.local"
QUEUE_PROXY = 8012


class Commands:
    def begin(self) -> None:
        """Create accounts if there are none yet, and remember the last existing event."""
        with transaction() as connection:
            count = connection.scalar(select(func.count()).select_from(account)) or 0
        if count < ACCOUNTS:
            accounts.load(ACCOUNTS)
        self.first_event = _value("SELECT last_value FROM outbox_positions")
        self.prepared: list[bytes] = []

    def drop_events(self) -> None:
        with transaction() as connection:
            connection.execute(text("DELETE FROM outbox WHERE position > :first"), {"first": self.first_event})

    def reach(self, host: str, traffic: str) -> float:
        """Return the seconds to the answer of a function, called by its host through Knative's ingress."""
        (request,) = TRAFFIC[traffic](1)
        load = client.load((KOURIER, 80), [request.replace(b"Host: 127.0.0.1", f"Host: {host}".encode())], 1)
        if load.failure:
            sys.exit(f"{host} failed: {load.failure}")
        return load.seconds[0]

    def prepare(self, traffic: str, requests: int) -> int:
        """Create new requests and return how many there are."""
        self.prepared = []
        while len(self.prepared) < requests:
            self.prepared += TRAFFIC[traffic](min(AT_ONCE, requests - len(self.prepared)))
        return len(self.prepared)

    def load(self, address: str, connections: int) -> dict[str, Any]:
        """Send the prepared requests to a pod, and return the result and the cost on the servers."""
        before = _counts()
        load = client.load((address, QUEUE_PROXY), self.prepared, connections)
        after = _counts()
        asked = {name: after[name] - before[name] for name in after}
        idle, ticks = asked.pop("idle"), asked.pop("ticks")
        return {
            "rate": load.rate,
            "p95": sorted(load.seconds)[len(load.seconds) * 95 // 100],
            "failure": load.failure,
            "busy": 1 - idle / ticks,
            "asked": asked,
        }


def _counts() -> dict[str, float]:
    """Return counters of the servers and of the node's processors."""
    ticks = [int(tick) for tick in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    _value("SELECT 1 FROM pg_stat_force_next_flush()")  # otherwise the preparation would count as well
    return {
        "transactions": _value("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"),
        "events": _value("SELECT last_value FROM outbox_positions"),
        "commands": redis.Redis.from_url(settings().redis_url).info("stats")["total_commands_processed"],
        "ticks": sum(ticks[:8]),
        "idle": ticks[1] + ticks[3] + ticks[4],  # nice processes yield, so they count as idle
    }


def _value(statement: str) -> int:
    with transaction() as connection:
        return connection.scalar(text(statement)) or 0


def main() -> None:
    commands = Commands()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(commands, name)(**arguments)), flush=True)


if __name__ == "__main__":
    main()
