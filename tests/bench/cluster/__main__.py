"""Measure on the current kube context: python -m tests.bench.cluster [zero capacity].

JSON= is a file for the figures of zero. Those of capacity go to docs/capacity.json. FUNCTIONS= selects functions.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from knative.terminal import Refused
from tests.bench.__main__ import show
from tests.bench.cluster import capacity, testbed, zero

MEASURES = ("zero", "capacity")


def main() -> None:
    names = sys.argv[1:] or [*MEASURES]
    if unknown := set(names) - {*MEASURES}:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Choose from: {', '.join(MEASURES)}.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM also cleans up the cluster
    try:
        testbed.refuse_unless_ready()
        with testbed.generator() as generator:
            figures = zero.measure(generator) if "zero" in names else []
            if "capacity" in names:
                capacity.measure(generator, [*filter(None, os.environ.get("FUNCTIONS", "").split(";"))])
    except Refused as error:
        sys.exit(str(error))
    if figures:
        show(figures)
        if path := os.environ.get("JSON"):
            content = json.dumps([asdict(figure) | {"met": figure.met} for figure in figures], indent=1)
            Path(path).write_text(content + "\n", "utf-8")
    if not all(figure.met for figure in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
