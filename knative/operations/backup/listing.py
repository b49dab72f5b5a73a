"""What backups there are: `aegis backups`."""

from datetime import UTC, datetime

from knative.operations.backup import authenticity, manifest
from knative.operations.backup.store import Vault
from knative.terminal import aligned


def table(vault: Vault) -> str:
    """A line for each backup, the newest first; and for what only seems to be one, with the reason."""
    lines = [_line(vault, name) for name in vault.store.names() if manifest.is_name(name)]
    if not lines:
        return "There is no backup. Take one: aegis backup"
    header = "backup", "age", "size", "accounts", "schema", "PostgreSQL"
    return "\n".join(aligned([header, *reversed(lines)], "<>>>"))


def _line(vault: Vault, name: str) -> tuple[str, ...]:
    one = authenticity.problem(vault, name)
    if isinstance(one, str):
        return name, f"not verified: {one}"
    age = (datetime.now(UTC) - one.taken_at).total_seconds()
    shown = f"{age / 86400:.0f} days" if age >= 2 * 86400 else f"{age / 3600:.0f} h"
    accounts = one.rows.get("account", 0)
    return name, shown, f"{one.size:,}", f"{accounts:,}", one.schema, one.postgresql
