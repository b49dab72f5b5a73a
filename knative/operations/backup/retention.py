"""Which backups are kept: those of the last 24 hours, and the last of each of some days, weeks and months."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from knative.operations.backup import authenticity, manifest
from knative.operations.backup.manifest import Manifest
from knative.operations.backup.store import Vault
from knative.terminal import Progress, Refused


class Keep(NamedTuple):
    """How many of each; a backup that is the last of its day, week and month counts for all three."""

    daily: int
    weekly: int
    monthly: int


LEAST = 3
"""So many of the newest good ones are kept, whatever their age."""
MOST = 2000
"""Beyond so many names somebody fills the store: nothing is deleted then, and reading them all would take hours."""


def apply(vault: Vault, taken: Manifest, keep: Keep, progress: Progress) -> list[str]:
    """Deletes the other good backups; returns the names of those that are left. Called when the newest is good.

    What is not known to be good counts for nothing and is never deleted, and is reported.

    Raises:
        Refused: the backup just taken would not be among those that are kept; nothing was deleted.
    """
    names = [name for name in vault.store.names() if manifest.is_name(name)]
    if len(names) > MOST:
        progress.say(f"WARNING: there are {len(names):,} names in the store. Nothing was deleted: docs/backup.md")
        return names
    good = authenticity.good(vault)
    authenticity.report(set(names) - good, progress)
    kept = chosen(good, keep) if good else set()
    if taken.name not in kept:
        raise Refused(
            f"The backup {taken.name} would not survive: it is not in the store as written. Nothing was deleted.\n"
            "Check who else writes to BACKUP_STORE, and the clock of this machine."
        )
    for name in good - kept:
        vault.store.delete(name)
    return sorted(kept)


def chosen(names: Collection[str], keep: Keep) -> set[str]:
    """The names that are kept; the newest always is.

    With it all of the day before it: who takes one by hand, as something went wrong, does not lose the one from before.
    """
    last_day = manifest.taken_at(max(names)) - timedelta(days=1)
    return (
        {name for name in names if manifest.taken_at(name) > last_day}
        | set(sorted(names)[-LEAST:])
        | _newest(names, keep.daily, lambda at: (at.year, at.month, at.day))
        | _newest(names, keep.weekly, lambda at: at.isocalendar()[:2])
        | _newest(names, keep.monthly, lambda at: (at.year, at.month))
    )


def _newest(names: Collection[str], count: int, period: Callable[[datetime], tuple[int, ...]]) -> set[str]:
    """The newest of each of the last so many periods (UTC)."""
    newest = {period(manifest.taken_at(name)): name for name in sorted(names)}
    return set(sorted(newest.values(), reverse=True)[:count])
