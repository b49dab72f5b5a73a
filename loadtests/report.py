"""The report of a run: one HTML file that needs nothing else."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from loadtests import alerts
from loadtests.alerts import Sample
from loadtests.verdict import Run

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 200, 52, 22
COLORS = ("#2f6fed", "#e08a00", "#7b4fc9", "#c4314b", "#2e8b57", "#0f8b8d", "#8a5a2b", "#666666")


@dataclass(frozen=True)
class Line:
    """A series over the seconds of a run; None where nothing is known."""

    name: str
    values: Sequence[float | None]
    color: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    lines: Sequence[Line]
    threshold: float | None = None

    @property
    def top(self) -> float:
        return self.ticks[-1]

    @property
    def seconds(self) -> int:
        return max((len(line.values) for line in self.lines), default=1)

    def x(self, second: float) -> float:
        return LEFT + (WIDTH - LEFT) * second / max(1, self.seconds - 1)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 8) * value / self.top

    def path(self, line: Line) -> str:
        """The SVG path of a line, broken where nothing is known."""
        parts, pen_up = [], True
        for second, value in enumerate(line.values):
            if value is not None:
                parts.append(f"{'M' if pen_up else 'L'}{self.x(second):.1f},{self.y(value):.1f}")
            pen_up = value is None
        return "".join(parts)

    @property
    def ticks(self) -> list[float]:
        """Round numbers, from 0 to beyond the largest value."""
        known = [value for line in self.lines for value in line.values if value is not None]
        largest = max([*known, self.threshold or 0, 1])
        magnitude = 10.0 ** math.floor(math.log10(largest / 4))
        step = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude * 5 > largest)
        return [step * number for number in range(math.floor(largest / step) + 2)]


def write_report(run: Run, file: Path) -> None:
    """Writes the report of a run."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    html = environment.get_template("report.html").render(
        run=run,
        written_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        rows=[row(function, own) for function, own in sorted(by_function(run.samples).items())],
        charts=charts(run),
        lanes=lanes(run),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )
    file.write_text(html, "utf-8")


def by_function(samples: list[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.function, []).append(sample)
    return found


def row(function: str, samples: list[Sample]) -> dict[str, object]:
    latencies = [sample.seconds * 1000 for sample in samples]
    return {
        "function": function,
        "requests": len(samples),
        "failed": sum(sample.failed for sample in samples),
        **{name: alerts.percentile(latencies, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        "max": max(latencies),
    }


def charts(run: Run) -> list[Chart]:
    seconds = range(run.seconds + 1)
    per_second: list[list[Sample]] = [[] for _ in seconds]
    for sample in run.samples:
        if sample.second in seconds:
            per_second[sample.second].append(sample)

    def over_time(measure: Callable[[list[Sample]], float | None]) -> list[float | None]:
        return [measure(samples) for samples in per_second]

    def latency(share: float) -> list[float | None]:
        return over_time(lambda own: alerts.percentile([s.seconds * 1000 for s in own], share) if own else None)

    found = [
        Chart(
            "Latency, as Locust saw it",
            "ms",
            [Line(name, latency(share), color) for (name, share), color in zip(_PERCENTILES, COLORS, strict=False)],
            threshold=alerts.threshold(alerts.LATENCY) * 1000,
        ),
        Chart(
            "Requests and failures",
            "/s",
            [
                Line("requests", over_time(len), COLORS[0]),
                Line("failures", over_time(lambda own: sum(s.failed for s in own)), COLORS[3]),
            ],
        ),
        Chart("People", "", [Line("people", [run.users.get(second) for second in seconds], COLORS[4])]),
    ]
    functions = sorted({function for pods in run.pods.values() for function in pods})
    if functions:
        lines = [
            Line(name, [run.pods.get(second, {}).get(name) for second in seconds], COLORS[number % len(COLORS)])
            for number, name in enumerate(functions)
        ]
        found.append(Chart("Pods of each function", "", lines))
    return found


_PERCENTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def lanes(run: Run) -> list[dict[str, object]]:
    """For each alert, its state in each second; one lane for each function where it was not quiet."""
    found = []
    for rule in alerts.rules():
        functions = {
            alert.function for active in run.alerts.values() for alert in active if alert.name == rule["alert"]
        }
        for function in sorted(functions) or [""]:
            states = [
                next(
                    (a.state for a in run.alerts.get(second, []) if (a.name, a.function) == (rule["alert"], function)),
                    "quiet",
                )
                for second in range(run.seconds + 1)
            ]
            found.append({"name": rule["alert"], "function": function, "states": states})
    return found
