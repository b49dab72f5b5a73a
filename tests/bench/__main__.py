"""Measure all figures, or those of the given parts: python -m tests.bench [events ...].

KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL and REDIS_URL replace the embedded servers. The broker must not have our topic.
JSON= is a file for the figures.
"""

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from knative.local import up
from knative.local.supervisor import Supervisor
from shared.postgresql.migrate import migrate
from tests.bench import events, growth, serving, starting
from tests.bench.figures import Figure

MEASURES: dict[str, Callable[[], Sequence[Figure]]] = {
    "starting": starting.measure,
    "serving": serving.measure,
    "events": events.measure,
    "growth": growth.measure,
}


def main() -> None:
    names = sys.argv[1:] or [*MEASURES]
    if unknown := set(names) - MEASURES.keys():
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Choose from: {', '.join(MEASURES)}.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM also stops the servers
    with tempfile.TemporaryDirectory(prefix="aegis-bench-") as name:
        (folder := Path(name)).chmod(0o755)
        supervisor = Supervisor(folder, print, threading.Event())
        try:
            os.environ |= up.start_servers(supervisor, folder) | up.settings(folder, 8080)
            migrate()
            figures = [figure for name in names for figure in MEASURES[name]()]
        finally:
            supervisor.stop()
    show(figures)
    if path := os.environ.get("JSON"):
        Path(path).write_text(
            json.dumps([asdict(figure) | {"met": figure.met} for figure in figures], indent=1) + "\n", "utf-8"
        )
    if not all(figure.met for figure in figures):
        sys.exit(1)


def show(figures: Sequence[Figure]) -> None:
    print(f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f} at the end\n")
    print(f"{'figure':<20}{'value':>10} {'unit':<12}{'baseline':>10}{'ratio':>8}  {'goal':<10}{'runs':>6}{'spread':>8}")
    for one in figures:
        ratio = f"{one.ratio:.2f}" if one.ratio is not None else "-"
        print(
            f"{one.figure:<20}{number(one.value):>10} {one.unit:<12}{number(one.baseline):>10}{ratio:>8}  "
            f"{one.goal:<10}{one.runs:>6}{one.spread:>8.0%}{'' if one.met else '  MISSED'}"
        )


def number(value: float | None) -> str:
    """Format with three significant digits."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
