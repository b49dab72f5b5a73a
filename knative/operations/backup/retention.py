"""Decide which backups to keep: those of the last 24 hours, and the last of each of some days, weeks and months."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from knative.operations.backup import authenticity, manifest
from knative.operations.backup.manifest import Manifest
from knative.operations.backup.store import Vault
from knative.terminal import Progress, Refused


class Keep(NamedTuple):
    """How many of each to keep. One backup can count as daily, weekly and monthly."""

    daily: int
    weekly: int
    monthly: int


LEAST = 3
"""How many of the newest good backups are kept regardless of age."""
MOST = 2000
"""With more names than this, somebody is filling the store: delete nothing, as reading all of them would take hours."""


def apply(vault: Vault, taken: Manifest, keep: Keep, progress: Progress) -> list[str]:
    """Delete good backups that need not be kept and return the names of the rest. The newest must be good.

    Unverified backups do not count, are never deleted, and are reported.

    Raises:
        Refused: the backup just taken would not be kept. Nothing was deleted.
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
            f"The backup {taken.name} would not be kept: it is not in the store as written. Nothing was deleted.\n"
            "Check who else writes to BACKUP_STORE, and the clock of this machine."
        )
    for name in good - kept:
        vault.store.delete(name)
    return sorted(kept)


def chosen(names: Collection[str], keep: Keep) -> set[str]:
    """Return the names to keep. The newest is always among them.

    All backups of the last 24 hours are kept too: one taken by hand after an accident must not replace the one before.
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
    """Return the newest name of each of the last `count` periods (UTC)."""
    newest = {period(manifest.taken_at(name)): name for name in sorted(names)}
    return set(sorted(newest.values(), reverse=True)[:count])
