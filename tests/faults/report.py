"""The report of a run: how much was asked, what died, and what callers and events saw of it."""

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING

from tests.faults import schedule
from tests.faults.doubles import doubles
from tests.faults.people import outcomes

if TYPE_CHECKING:
    from tests.faults.conftest import Run


def text(run: "Run") -> str:
    asks, kills, found = run.load.asks, run.service.kills, run.evidence
    at_once = sum(ask.succeeded and len(ask.attempts) == 1 for ask in asks)
    repeated = sum(ask.succeeded and len(ask.attempts) > 1 for ask in asks)
    done_before = sum(ask.was_done_before for ask in asks)
    others = len(asks) - at_once - repeated - done_before
    handled = Counter(each.function for each in found.handled if each.done_at)
    stale = run.load.stale_reads
    lines = [
        f"{len(asks)} requests of {len(run.load.people)} people in {run.seconds:.0f} s: {at_once} succeeded at once, "
        f"{repeated} when sent again, {done_before} log-outs had when sent again; {others} did not; "
        f"{run.load.left_out} were left out, as everybody waited",
        f"attempts: {counted(outcomes(asks))}",
        f"{len(kills)} kills: {counted(Counter(label(kill.name) for kill in kills))}",
        "the longest that a caller waited, in seconds: " + counted(longest_waits(run)),
        f"{len(found.events)} events: {counted(Counter(event.type.split('.')[-2] for event in found.events))}",
        f"handled: {counted(handled)}; all of them {seconds(run.settled_after[0])} after the kills without the broker, "
        f"and {seconds(run.settled_after[1])} after the last request",
        f"after a kill of the relay the next event was sent within {max(run.sent_again_after, default=0):.1f} s "
        f"(the longest of {len(run.sent_again_after)}); the longest until an event was recorded that came after a kill "
        f"of one alone, in seconds: {counted(longest_gaps(run))}; without any, {longest_standstill(run):.1f} s",
        f"{len(found.mails)} mails, of which second ones: {len(doubles(run))}",
        f"{len(stale)} reads showed the profile from before a change, at the most {max(stale, default=0):.1f} s after",
        f"the most threads: {counted(most(run.service.threads))}; "
        f"the most memory, in MB: {counted(most(run.service.megabytes))}",
    ]
    return "\n".join(lines)


def most(figures: dict[str, float]) -> dict[str, float]:
    return dict(sorted(figures.items(), key=lambda item: -item[1])[:4])


def label(name: str) -> str:
    return name if name in (*schedule.INVOLVED, schedule.BROKER) else "other functions"


def seconds(figure: float | None) -> str:
    return "NEVER" if figure is None else f"{figure:.1f} s"


def counted(counts: Counter[str] | dict[str, float]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count if isinstance(count, int) else round(count, 1)}" for name, count in ordered)


def longest_waits(run: "Run") -> dict[str, float]:
    """By function, with all that was sent again."""
    longest: dict[str, float] = {}
    for ask in run.load.asks:
        longest[ask.function] = max(longest.get(ask.function, 0.0), ask.seconds)
    return longest


def handled(run: "Run") -> list[tuple[float, float]]:
    """When each event occurred and when its function was done with it, in seconds since 1970."""
    return [
        (each.event.occurred_at.timestamp(), each.done_at.timestamp()) for each in run.evidence.handled if each.done_at
    ]


def longest_gaps(run: "Run") -> dict[str, float]:
    """By what was killed alone: until an event that occurred after it was recorded, where nothing else died before."""
    times, kills = handled(run), run.service.kills
    longest: dict[str, float] = {}
    for kill, next_ in itertools.pairwise(kills):
        until = min((done for occurred, done in times if occurred > kill.at), default=math.inf)
        if kill.is_alone and kill.at < until < next_.at:
            longest[kill.name] = max(longest.get(kill.name, 0.0), until - kill.at)
    return longest


def longest_standstill(run: "Run") -> float:
    """The longest time in which no event was recorded, in seconds."""
    ends = sorted(done for _, done in handled(run))
    return max((later - earlier for earlier, later in itertools.pairwise(ends)), default=0.0)
