"""The commands `aegis backup`, `backups`, `restore` and `drill`, with the settings of this process."""

import argparse

import pyrage

from knative.operations.backup import authenticity, drill, identity, listing, postgresql, restore, take
from knative.operations.backup.retention import Keep
from knative.operations.backup.store import Vault, opened
from knative.terminal import Progress, Refused
from shared.runtime import database_url
from shared.runtime.settings import Settings, settings


def run(called: argparse.Namespace) -> str:
    """Does what is called for; returns what to print."""
    own, progress = settings(), Progress()
    vault = _vault(own, called, progress)
    if called.command == "backups":
        accepted = [authenticity.accept(vault, name, own.privileged_database_url) for name in called.accept]
        return "\n".join(accepted) or listing.table(vault)
    database = _url(called.url) or own.privileged_database_url
    postgresql.wait_for(database, progress)
    match called.command:
        case "backup":
            return take.take(database, vault, Keep(*own.backup_keep), progress)
        case "restore":
            allowed = {"force": called.force, "older": called.older}
            restored = restore.restore(vault, called.name, database, progress, of=own.database_url, **allowed)
            return f"{restored.name} is restored. All users log in again; take a new backup: aegis backup"
        case _:
            return drill.drill(vault, database, progress)


def _vault(own: Settings, called: argparse.Namespace, progress: Progress) -> Vault:
    identities: tuple[str, ...] = ()
    if called.command in ("restore", "drill"):
        identities = identity.read(called.identity) if called.identity else tuple(filter(None, [own.backup_identity]))
        if called.identity == "-":
            progress.say(identity.TAKEN)
        if not identities:
            raise Refused(
                "Nothing was changed. A backup takes its age identity to open: --identity FILE (- for standard input)."
            )
    try:
        for one in own.backup_recipients:
            pyrage.x25519.Recipient.from_str(one)
        for one in identities:
            pyrage.x25519.Identity.from_str(one)
    except (pyrage.RecipientError, pyrage.IdentityError):
        raise Refused("Nothing was changed. A key of the backups has a typing error: its checksum is wrong.") from None
    return Vault(opened(own.backup_store), own.backup_manifest_keys, own.backup_recipients, identities)


def _url(text: str) -> str:
    try:
        if text:
            database_url.parse(text)
    except ValueError as error:
        raise Refused(f"Nothing was changed. The URL {error}. One is postgresql://user:password@host/name.") from None
    return text
