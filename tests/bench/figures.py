"""A figure: what was measured, the baseline beside it, and whether their ratio meets the goal."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    figure: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    goal: str
    """Such as "<= 1.2" of the ratio, or of the value where no baseline stands beside it; empty where none is set."""
    runs: int
    spread: float
    """The largest of the runs less the smallest, in parts of their median."""

    @property
    def met(self) -> bool:
        if not self.goal:
            return True
        comparison, _, limit = self.goal.partition(" ")
        reached = self.value if self.ratio is None else self.ratio
        return reached <= float(limit) if comparison == "<=" else reached >= float(limit)


def beside(figure: str, unit: str, goal: str, pairs: Sequence[tuple[float, float]]) -> Figure:
    """The figure of runs that each measured (value, baseline) one right after the other; its ratio is their median."""
    ratios = [value / baseline for value, baseline in pairs]
    ratio = statistics.median(ratios)
    return Figure(
        figure,
        statistics.median(value for value, _ in pairs),
        unit,
        statistics.median(baseline for _, baseline in pairs),
        ratio,
        goal,
        len(pairs),
        (max(ratios) - min(ratios)) / ratio,
    )


def in_turns(runs: int, measure: Callable[[], float], baseline: Callable[[], float]) -> list[tuple[float, float]]:
    """Measures both so often, in turns, so that what else the machine does meets both; the first pair warms up."""
    measure(), baseline()
    return [(measure(), baseline()) for _ in range(runs)]
