"""The figures of a run as a JSON document, for its report and for comparisons with later runs."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from loadtests import rules
from loadtests.alerts import CannotJudge, Sample, percentile
from loadtests.verdict import Run

Record = dict[str, Any]
MOST_STEPS = 600
"""Runs with more seconds than this use longer steps."""
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def record(run: Run, code: int) -> Record:
    """Return the figures: latencies in milliseconds; `over_time` has one entry per step of `step` seconds."""
    step = math.ceil((run.seconds + 1) / MOST_STEPS)
    moments = range(0, run.seconds + 1, step)
    steps = [
        [sample for second in range(moment, moment + step) for sample in run.samples[second]] for moment in moments
    ]
    functions = sorted({sample.function for sample in run.all_samples})

    def over_time(measure: Callable[[list[Sample]], float | None], function: str = "") -> list[float | None]:
        return [measure([sample for sample in own if function in ("", sample.function)]) for own in steps]

    return {
        "scenario": run.scenario,
        "url": run.url,
        "judge": run.judge,
        "started_at": run.started_at.isoformat(timespec="seconds"),
        "seconds": run.seconds + 1,
        "exit_code": code,
        "verdict": run.verdict,
        "thresholds": {
            "latency": rules.threshold(rules.LATENCY) * 1000,
            "objectives": [seconds * 1000 for seconds in rules.latency_thresholds()],
            "errors": rules.threshold(rules.ERRORS),
        },
        "functions": {name: _figures([s for s in run.all_samples if s.function == name]) for name in functions},
        "all": _figures(run.all_samples),
        "failures": dict(sorted(run.errors.items())),
        "alerts": list(_spells(run)),
        "step": step,
        "over_time": {
            "people": [run.users.get(moment) for moment in moments],
            "requests": over_time(lambda own: round(len(own) / step, 1)),
            "failed": over_time(lambda own: round(sum(sample.failed for sample in own) / step, 1)),
            **{name: over_time(_latency(share)) for name, share in SHARES.items()},
        },
        "p95_of_functions": {name: over_time(_latency(0.95), name) for name in functions},
        "pods": {
            name: [run.pods.get(moment, {}).get(name, 0) for moment in moments]
            for name in sorted({name for pods in run.pods.values() for name in pods})
        },
    }


def write(recorded: Record, file: Path) -> None:
    file.write_text(json.dumps(recorded, indent=1, ensure_ascii=False), "utf-8")


def earlier(path: str | None) -> Record | None:
    """Return the figures of the run in the file COMPARE.

    Raises:
        CannotJudge: the file is not such a document.
    """
    if not path:
        return None
    try:
        found: Record = json.loads(Path(path).read_text("utf-8"))
        found["p95_of_functions"]  # only these documents have it
    except (OSError, ValueError, KeyError, TypeError):
        raise CannotJudge(f"COMPARE={path} is not the JSON that an earlier run wrote beside its report.") from None
    return found


def _latency(share: float) -> Callable[[list[Sample]], float | None]:
    return lambda own: round(percentile([sample.seconds * 1000 for sample in own], share), 1) if own else None


def _figures(samples: Sequence[Sample]) -> dict[str, float]:
    latencies = [sample.seconds * 1000 for sample in samples]
    return {
        "requests": len(samples),
        "failed": sum(sample.failed for sample in samples),
        **{name: round(percentile(latencies, share), 1) for name, share in SHARES.items()},
        "max": round(max(latencies, default=0.0), 1),
    }


def _spells(run: Run) -> Iterator[Record]:
    """Yield each period in which an alert was pending or firing, with its seconds and its highest value."""
    for subject in sorted({alert.subject for active in run.alerts.values() for alert in active}):
        seen = [
            (second, alert)
            for second, active in sorted(run.alerts.items())
            for alert in active
            if alert.subject == subject
        ]
        for state, spell in groupby(seen, key=lambda one: one[1].state):
            moments = list(spell)
            values = [alert.value for _, alert in moments if math.isfinite(alert.value)]
            yield {
                "alert": subject.alert,
                "about": subject.about,
                "state": state,
                "from": moments[0][0],
                "until": moments[-1][0] + 1,
                "value": max(values, default=None),
                "was_there_before": subject in run.before,
            }
