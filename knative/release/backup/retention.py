"""Which backups are kept: those of the last 24 hours, and the last of each of some days, weeks and months."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from knative.release.backup import manifest
from knative.release.backup.store import Store


class Keep(NamedTuple):
    """How many of each; a backup that is the last of its day, week and month counts for all three."""

    daily: int
    weekly: int
    monthly: int


def apply(store: Store, keep: Keep) -> list[str]:
    """Deletes the other backups; returns the names of those that are left. Called when the newest is known to be good.

    What has no manifest is no backup, and is left to who knows that nobody is writing it.
    """
    names = list(manifest.finished(store))
    kept = chosen(names, keep)
    for name in names:
        if name not in kept:
            store.delete(name)
    return sorted(kept)


def chosen(names: Collection[str], keep: Keep) -> set[str]:
    """The names that are kept; the newest always is.

    With it all of the day before it: who takes one by hand, as something went wrong, does not lose the one from before.
    """
    last_day = manifest.taken_at(max(names)) - timedelta(days=1)
    return (
        {name for name in names if manifest.taken_at(name) > last_day}
        | _newest(names, keep.daily, lambda at: (at.year, at.month, at.day))
        | _newest(names, keep.weekly, lambda at: at.isocalendar()[:2])
        | _newest(names, keep.monthly, lambda at: (at.year, at.month))
    )


def _newest(names: Collection[str], count: int, period: Callable[[datetime], tuple[int, ...]]) -> set[str]:
    """The newest of each of the last so many periods (UTC)."""
    newest = {period(manifest.taken_at(name)): name for name in sorted(names)}
    return set(sorted(newest.values(), reverse=True)[:count])
