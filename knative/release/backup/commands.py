"""The commands `aegis backup`, `backups`, `restore` and `drill`, with the settings of this process."""

import argparse

from knative.release.backup import drill, listing, restore, take
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
    match called.command:
        case "backup":
            return take.take(own.database_url, vault, Keep(*own.backup_keep), progress)
        case "restore":
            into = _url(called.into) or own.database_url
            restored = restore.restore(vault, called.name, into, progress, force=called.force)
            return f"{restored.name} is restored. All users log in again; take a new backup: aegis backup"
        case "drill":
            return drill.drill(vault, _url(called.on) or own.database_url, progress)
        case _:
            return listing.table(vault.store)


def _url(text: str) -> str:
    try:
        if text:
            database_url.parse(text)
    except ValueError as error:
        raise Refused(f"Nothing was changed. The URL {error}. One is postgresql://user:password@host/name.") from None
    return text
