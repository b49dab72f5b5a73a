"""A figure: the measured value, its baseline, and whether their ratio meets the goal."""

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
    """Such as "<= 1.2", for the ratio, or for the value if there is no baseline; empty without a goal."""
    runs: int
    spread: float
    """The largest minus the smallest run, relative to their median."""

    @property
    def met(self) -> bool:
        if not self.goal:
            return True
        comparison, _, limit = self.goal.partition(" ")
        reached = self.value if self.ratio is None else self.ratio
        return reached <= float(limit) if comparison == "<=" else reached >= float(limit)


def beside(figure: str, unit: str, goal: str, pairs: Sequence[tuple[float, float]]) -> Figure:
    """Return the figure of runs that measured (value, baseline) in succession. Its ratio is the median ratio."""
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
    """Measure both in turns, so that other load affects both. The first pair is a warm-up."""
    measure(), baseline()
    return [(measure(), baseline()) for _ in range(runs)]
