"""The commands `aegis backup`, `backups`, `restore` and `drill`, with the settings of this process."""

import argparse

from knative.release.backup import drill, listing, postgresql, restore, take
from knative.release.backup.retention import Keep
from knative.release.backup.store import Vault, opened
from knative.release.progress import Progress
from knative.release.refused import Refused
from shared import database_url
from shared.settings import settings


def run(called: argparse.Namespace) -> str:
    """Does what is called for; returns what to print."""
    own, progress = settings(), Progress()
    vault = Vault(opened(own.backup_store), own.backup_key)
    if called.command == "backups":
        return listing.table(vault.store)
    database = _url(called.url) or own.database_url
    postgresql.wait_for(database, progress)
    match called.command:
        case "backup":
            return take.take(database, vault, Keep(*own.backup_keep), progress)
        case "restore":
            restored = restore.restore(vault, called.name, database, progress, force=called.force)
            return f"{restored.name} is restored. All users log in again; take a new backup: aegis backup"
        case _:
            return drill.drill(vault, database, progress)


def _url(text: str) -> str:
    try:
        if text:
            database_url.parse(text)
    except ValueError as error:
        raise Refused(f"Nothing was changed. The URL {error}. One is postgresql://user:password@host/name.") from None
    return text
