"""List the backups: `aegis backups`."""

from datetime import UTC, datetime
from typing import Any

from knative.operations.backup import authenticity, manifest
from knative.operations.backup.store import Vault
from knative.terminal import Result, aligned


def table(vault: Vault) -> Result:
    """Return a line per backup, newest first. Unverified backups have the reason instead of details."""
    found = [_described(vault, name) for name in sorted(vault.store.names(), reverse=True) if manifest.is_name(name)]
    if not found:
        return Result("There are no backups. Take one: aegis backup", found)
    header = "backup", "age", "size", "accounts", "schema", "PostgreSQL"
    return Result("\n".join(aligned([header, *map(_line, found)], "<>>>")), found)


def _described(vault: Vault, name: str) -> dict[str, Any]:
    one = authenticity.problem(vault, name)
    if isinstance(one, str):
        return {"name": name, "problem": one}
    return {
        "name": name,
        "taken_at": one.taken_at.isoformat(),
        "size": one.size,
        "accounts": one.rows.get("account", 0),
        "schema": one.schema,
        "postgresql": one.postgresql,
        "problem": None,
    }


def _line(one: dict[str, Any]) -> tuple[str, ...]:
    if one["problem"]:
        return one["name"], f"not verified: {one['problem']}"
    age = (datetime.now(UTC) - datetime.fromisoformat(one["taken_at"])).total_seconds()
    shown = f"{age / 86400:.0f} days" if age >= 2 * 86400 else f"{age / 3600:.0f} h"
    return one["name"], shown, f"{one['size']:,}", f"{one['accounts']:,}", one["schema"], one["postgresql"]
