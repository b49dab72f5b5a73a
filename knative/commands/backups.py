"""The commands on backups."""

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
    there = click.option("--in-cluster", is_flag=True, help="Run it in the cluster, in a pod like the CronJob's.")
    context = click.option(
        "--context", metavar="CTX", help="The kube context of --in-cluster (default: the current one)."
    )
    return there(context(command))


_identity = click.option(
    "--identity", metavar="FILE", default="", help="The age identity that opens backups; - for standard input."
)


@click.command(cls=Command, examples=("aegis backup --in-cluster", "BACKUP_STORE=s3://backups/aegis aegis backup"))
@_where
def backup(in_cluster: bool, context: str | None) -> Result:
    """Take a backup of the database.

    It holds the whole database as it is at one moment, and goes to BACKUP_STORE: a folder, or a bucket named
    s3://BUCKET/PREFIX. It is encrypted on the way (age, to BACKUP_RECIPIENTS) and read back before it counts. An
    incomplete backup does not count, and the next run deletes it. Afterwards, backups that BACKUP_KEEP_DAILY,
    BACKUP_KEEP_WEEKLY and BACKUP_KEEP_MONTHLY do not keep are deleted. The service keeps running meanwhile.

    docs/backup.md has more.
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

    Each with its age, its size in bytes (encrypted), its number of accounts, its schema and the version of its
    server; or why it is not verified. An unverified backup is neither restored nor deleted until you vouch for it
    with --accept NAME: its objects are then compared with its manifest, and the manifest is authenticated under
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
@click.option("--older", is_flag=True, help="Restore it although a newer backup is known.")
@click.option("--into", "url", metavar="URL", default="", help="Another database than DATABASE_URL.")
@_identity
@_where
def restore(
    *, name: str, force: bool, older: bool, url: str, identity: str, in_cluster: bool, context: str | None
) -> Result:
    """Restore the database from a backup.

    NAME is as aegis backups lists it, or latest.

    The whole backup is read first: checksum, key, schema. It is then restored in one transaction, the rows of each
    table are compared with the manifest, and users who were purged since are deleted again, as far as the newest
    backup in the store and the database itself know them. If anything goes wrong before that transaction ends,
    the database is unchanged. Finally the schema is migrated to that of this program. All sessions end, and links
    and codes that were sent are void: users log in again.

    --force is needed if the database holds accounts, or anything that does not belong to this service. --older is
    needed if a newer backup is known, because an older one brings back suspended accounts, removed roles and old
    passwords. docs/backup.md has more.
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
    return Result(f"{restored.name} is restored. All users log in again; take a new backup: aegis backup", told)


@click.command(
    cls=Command,
    examples=(
        "aegis drill --identity backup-identity.txt --in-cluster",
        "aegis drill --identity backup-identity.txt --on postgresql://user:password@host/name",
    ),
)
@click.option("--on", "url", metavar="URL", default="", help="A database on another server than that of DATABASE_URL.")
@_identity
@_where
def drill(url: str, identity: str, in_cluster: bool, context: str | None) -> Result:
    """Test the latest backup.

    It is restored into a scratch database on the same server and compared with its manifest. Functions are called
    on it (log-in, profile, search and others), the time of all this is printed, and the scratch database is
    dropped. The service and its database are not touched. The command exits with 1 if anything is wrong.
    """
    if in_cluster:
        _refuse_url(url, "--on")
        return _in_cluster(context, "drill", identity=identity)
    database, vault, progress = _opened(url, identity, opens=True)
    from knative.operations.backup import drill

    return drill.drill(vault, database, progress)


def _refuse_url(url: str, option: str) -> None:
    if url:  # its password would stand in the Job
        raise click.UsageError(f"{option} is not allowed with --in-cluster.")


def _in_cluster(context: str | None, command: str, arguments: Sequence[str] = (), identity: str = "") -> Result:
    """Runs a command of this module in a pod, and has what it printed there."""
    from knative.operations.backup import in_cluster
    from knative.operations.backup.identity import read

    identities = read(identity) if identity else ()
    as_json = click.get_current_context().meta.get(AS_JSON)
    printed = in_cluster.run(context, command, [*arguments, *["--json"] * bool(as_json)], identities, Progress())
    return Result(printed, document(printed) if as_json else None)


def document(log: str) -> object:
    """The JSON document at the end of a log, which has lines of progress before it."""
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if line in ("{", "[", "{}", "[]")]
    if not starts:
        raise Refused(f"The command has ended, but its log has no JSON document:\n{log}")
    document: object = json.loads("\n".join(lines[starts[-1] :]))
    return document


def _opened(
    url: str = "", identity: str = "", *, opens: bool = False, connects: bool = True
) -> tuple[str, "Vault", Progress]:
    """The database and the store of backups, from the settings.

    Args:
        url: another database than the settings name.
        opens: with the identities that decrypt backups.
        connects: waits until the database answers.
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
                "Nothing was changed. Opening a backup takes its age identity: --identity FILE (- for standard input)."
            )
    try:
        for one in own.backup_recipients:
            pyrage.x25519.Recipient.from_str(one)
        for one in identities:
            pyrage.x25519.Identity.from_str(one)
    except (pyrage.RecipientError, pyrage.IdentityError):
        raise Refused("Nothing was changed. A key of the backups is mistyped: its checksum is wrong.") from None
    vault = Vault(opened(own.backup_store), own.backup_manifest_keys, own.backup_recipients, identities)
    try:
        if url:
            database_url.parse(url)
    except ValueError as error:
        raise Refused(f"Nothing was changed. The URL {error}. One is postgresql://user:password@host/name.") from None
    database = url or own.privileged_database_url
    if connects:
        postgresql.wait_for(database, progress)
    return database, vault, progress
