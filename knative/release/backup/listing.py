"""What backups there are: `aegis backups`."""

from datetime import UTC, datetime

from knative.release.backup import manifest
from knative.release.backup.store import Store
from knative.release.columns import aligned
from knative.release.refused import Refused


def table(store: Store) -> str:
    """A line for each backup, the newest first."""
    lines = [_line(store, name) for name in manifest.finished(store)]
    if not lines:
        return "There is no backup. Take one: aegis backup"
    header = "backup", "age", "size", "accounts", "schema", "PostgreSQL"
    return "\n".join(aligned([header, *reversed(lines)], "<>>>"))


def _line(store: Store, name: str) -> tuple[str, ...]:
    try:
        one = manifest.read(store, name)
    except Refused as error:
        return name, str(error).partition("\n")[0]
    age = (datetime.now(UTC) - one.taken_at).total_seconds()
    shown = f"{age / 86400:.0f} days" if age >= 2 * 86400 else f"{age / 3600:.0f} h"
    accounts = one.rows.get("account", 0)
    return name, shown, f"{one.size:,}", f"{accounts:,}", one.schema, one.postgresql
