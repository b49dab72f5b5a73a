"""`aegis backup`, `aegis backups`, `aegis restore`, `aegis drill`."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from knative.commands.command import AS_JSON, Command, use_settings
from knative.terminal import Progress, Refused, Result

if TYPE_CHECKING:
    from knative.operations.backup.store import Vault


def add_to(aegis: click.Group) -> None:
    for command in (backup, backups, restore, drill):
        aegis.add_command(command)


def _where(command: Callable[..., Result]) -> Callable[..., Result]:
    there = click.option("--in-cluster", is_flag=True, help="Run it in the cluster, in a pod like that of the CronJob.")
    context = click.option(
        "--context", metavar="CTX", help="The kube context for --in-cluster (default: the current one)."
    )
    return there(context(command))


_identity = click.option(
    "--identity", metavar="FILE", default="", help="The age identity that opens backups; - for standard input."
)


@click.command(cls=Command, examples=("aegis backup --in-cluster", "BACKUP_STORE=s3://backups/aegis aegis backup"))
@_where
def backup(in_cluster: bool, context: str | None) -> Result:
    """Take a backup of the database.

    A backup is a consistent snapshot of the whole database. It is written to BACKUP_STORE: a folder, or a bucket
    named s3://BUCKET/PREFIX. The data is encrypted with age to BACKUP_RECIPIENTS before it is written. The
    manifest (sizes, row counts, versions) is authenticated but not encrypted.

    The command reads the backup back and checks it. If that fails, there is no new backup. Leftovers of a killed
    run are deleted by the next one. After a success, the command deletes backups that BACKUP_KEEP_DAILY,
    BACKUP_KEEP_WEEKLY and BACKUP_KEEP_MONTHLY do not keep. The service keeps running meanwhile.

    See docs/backup.md.
    """
    if in_cluster:
        return _in_cluster(context, "backup")
    database, vault, progress = _opened()
    from knative.operations.backup import take
    from knative.operations.backup.retention import Keep
    from shared.runtime.settings import settings

    return take.take(database, vault, Keep(*settings().backup_keep), progress)


@click.command(cls=Command, examples=("aegis backups --in-cluster", "aegis backups --json | jq -r '.[0].name'"))
@click.option(
    "--accept", metavar="NAME", multiple=True, help="Vouch for an unverified backup instead of listing. Repeatable."
)
@_where
def backups(accept: tuple[str, ...], in_cluster: bool, context: str | None) -> Result:
    """List the backups, newest first.

    The columns are age, size in bytes (encrypted), number of accounts, schema and PostgreSQL version, or the
    reason why a backup is not verified. An unverified backup is neither restored nor deleted until you vouch for
    it with --accept NAME. That compares its objects with its manifest and authenticates the manifest with
    BACKUP_MANIFEST_KEY.
    """
    if in_cluster:
        return _in_cluster(context, "backups", [word for name in accept for word in ("--accept", name)])
    database, vault, _ = _opened(connects=False)
    from knative.operations.backup import authenticity, listing

    if not accept:
        return listing.table(vault)
    said = {name: authenticity.accept(vault, name, database) for name in accept}
    return Result("\n".join(said.values()), said)


@click.command(
    cls=Command,
    examples=(
        "aegis restore latest --identity backup-identity.txt --in-cluster",
        "aegis restore 20260131T170000Z --force --older --identity backup-identity.txt --in-cluster",
    ),
)
@click.argument("name", metavar="NAME")
@click.option("--force", is_flag=True, help="Replace what the database holds.")
@click.option("--older", is_flag=True, help="Restore it even if a newer backup is known.")
@click.option("--into", "url", metavar="URL", default="", help="Restore into this database instead of DATABASE_URL.")
@_identity
@_where
def restore(
    *, name: str, force: bool, older: bool, url: str, identity: str, in_cluster: bool, context: str | None
) -> Result:
    """Restore the database from a backup.

    NAME is a name from aegis backups, or latest.

    The command first reads the whole backup and checks its checksum, key and schema. It then restores it in one
    transaction, compares the number of rows in each table with the manifest, and deletes users again who were
    purged after the backup, if the newest backup in the store or the database itself lists them. If anything
    fails before that transaction commits, the database is unchanged. Finally it migrates the schema to that of
    this program. All sessions end, and links and codes sent earlier are void: users must log in again.

    Use --force if the database has accounts, or anything that does not belong to this service. Use --older if a
    newer backup is known: an older one reactivates suspended accounts and brings back removed roles and old
    passwords. See docs/backup.md.
    """
    if in_cluster:
        _refuse_url(url, "--into")
        flags = [f"--{flag}" for flag, is_set in (("force", force), ("older", older)) if is_set]
        return _in_cluster(context, "restore", [name, *flags], identity)
    database, vault, progress = _opened(url, identity, opens=True)
    from knative.operations.backup import restore
    from shared.runtime.settings import settings

    of = settings().database_url
    restored = restore.restore(vault, name, database, progress, of=of, force=force, older=older)
    told = {"name": restored.name, "taken_at": restored.taken_at.isoformat(), "rows": sum(restored.rows.values())}
    return Result(f"Restored {restored.name}. All users must log in again. Take a new backup now: aegis backup", told)


@click.command(
    cls=Command,
    examples=(
        "aegis drill --identity backup-identity.txt --in-cluster",
        "aegis drill --identity backup-identity.txt --on postgresql://user:password@host/name",
    ),
)
@click.option("--on", "url", metavar="URL", default="", help="Use this database's server, not DATABASE_URL's.")
@_identity
@_where
def drill(url: str, identity: str, in_cluster: bool, context: str | None) -> Result:
    """Test the latest backup.

    The command restores it into a scratch database on the same server, compares it with its manifest, calls
    functions on it (log-in, profile, search and others), and drops the scratch database. It prints how long the
    restore took. The service and its database are not touched. The exit code is 1 if anything is wrong.
    """
    if in_cluster:
        _refuse_url(url, "--on")
        return _in_cluster(context, "drill", identity=identity)
    database, vault, progress = _opened(url, identity, opens=True)
    from knative.operations.backup import drill

    return drill.drill(vault, database, progress)


def _refuse_url(url: str, option: str) -> None:
    if url:  # its password would be visible in the Job
        raise click.UsageError(f"{option} is not allowed with --in-cluster.")


def _in_cluster(context: str | None, command: str, arguments: Sequence[str] = (), identity: str = "") -> Result:
    """Run a command of this module in a pod and return what it printed."""
    from knative.operations.backup import in_cluster
    from knative.operations.backup.identity import read

    identities = read(identity) if identity else ()
    as_json = click.get_current_context().meta.get(AS_JSON)
    printed = in_cluster.run(context, command, [*arguments, *["--json"] * bool(as_json)], identities, Progress())
    return Result(printed, document(printed) if as_json else None)


def document(log: str) -> object:
    """Return the JSON document at the end of a log, after lines of progress."""
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if line in ("{", "[", "{}", "[]")]
    if not starts:
        raise Refused(f"The command ended, but its log has no JSON document:\n{log}")
    document: object = json.loads("\n".join(lines[starts[-1] :]))
    return document


def _opened(
    url: str = "", identity: str = "", *, opens: bool = False, connects: bool = True
) -> tuple[str, "Vault", Progress]:
    """Return the database and the backup store from the settings.

    Args:
        url: replaces the database of the settings.
        opens: require the identities that decrypt backups.
        connects: wait until the database answers.
    """
    use_settings("database", "backups")
    import pyrage

    from knative.operations.backup import identity as identities_of
    from knative.operations.backup import postgresql
    from knative.operations.backup.store import Vault, opened
    from shared.runtime import database_url
    from shared.runtime.settings import settings

    own, progress = settings(), Progress()
    identities: tuple[str, ...] = ()
    if opens:
        identities = identities_of.read(identity) if identity else tuple(filter(None, [own.backup_identity]))
        if identity == "-":
            progress.say(identities_of.TAKEN)
        if not identities:
            raise Refused(
                "Nothing was changed. A backup can only be opened with its age identity: "
                "pass --identity FILE (- for standard input)."
            )
    try:
        for one in own.backup_recipients:
            pyrage.x25519.Recipient.from_str(one)
        for one in identities:
            pyrage.x25519.Identity.from_str(one)
    except (pyrage.RecipientError, pyrage.IdentityError):
        raise Refused(
            "Nothing was changed. An age recipient or identity has a wrong checksum: check it for typing errors."
        ) from None
    vault = Vault(opened(own.backup_store), own.backup_manifest_keys, own.backup_recipients, identities)
    try:
        if url:
            database_url.parse(url)
    except ValueError as error:
        raise Refused(
            f"Nothing was changed. The URL {error}. A valid URL looks like postgresql://user:password@host/name."
        ) from None
    database = url or own.privileged_database_url
    if connects:
        postgresql.wait_for(database, progress)
    return database, vault, progress
