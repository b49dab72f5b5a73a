"""The command of those who run the service: `python -m knative.aegis --help`."""

import argparse
import json
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from knative import data_folder
from knative.operations import administrators, dead_letters, replay, signing_keys
from knative.terminal import Progress, Refused
from shared.runtime import logs
from shared.runtime.problems import ServiceUnavailable
from shared.runtime.settings import REQUIRED_BY, Dependency, InvalidSettings, load, settings

DEPLOY_HELP = """\
Checks first, and changes nothing when anything is in the way. Then: migrates the database; starts the
new revision of each function without traffic, and calls each; gives them 10, 50 and 100 % of the
traffic, and looks in between whether an alert rule of production holds for them; then the relay,
the dispatcher and the routes. On an alert, a revision that fails or Ctrl-C the traffic goes back at
once, and the command ends with 1. With --no-gate nobody watches, so all of the traffic moves at once.

PROMETHEUS_URL says where the alerts are (or --no-gate). GATEWAY_URL, where the gateway is reached,
if not at the address in its status. A command that was killed leaves the traffic where it is: the
next one, deploy or rollback, puts it back first. docs/release.md has more."""

PREPARE_HELP = """\
Applies what belongs to the administrator of a cluster: the namespace and what pods in it may be, the
network policies, the service account, the rights of the group aegis-release, and of the environment
its secrets, volumes, monitors and the servers that operators run. Before the first release, and again
when aegis deploy says so. In a namespace that is in use it replaces secrets by those of the files.

docs/release.md lists what a release may do after that, and what not."""

ROLLBACK_HELP = """\
Gives all of the traffic to the revisions of an earlier release, of all functions together, and then
brings back its relay, dispatcher, routes and settings. The database stays as it is: migrations
expand before they contract, so an earlier release runs on the newer schema.

Without a name it is the one before the live one: called again it goes back one more. aegis releases
lists them; by its number or tag, one that is live already stays so."""

FAILOVER_HELP = """\
Makes the replica of make up REPLICA=1 the primary. First the primary is kept from ever taking writes
again, whether it runs, hangs or is dead: when it comes back it follows the other. Then the replica is
promoted. Functions and relay find it by themselves.

A primary that runs ends in order, and nothing is lost. What one that is dead had committed in its
last moments, and not sent, is lost: the next make up REPLICA=1 makes a new copy in its place.

Elsewhere than on this machine it is for the operator of the cluster: docs/failover.md."""

BACKUP_HELP = """\
Writes all of the database, as it is at one moment, to BACKUP_STORE: a folder, or a bucket as
s3://BUCKET/PREFIX. It is encrypted on the way (age, to BACKUP_RECIPIENTS) and read back before it counts:
what died half-way is no backup, and goes with the next one. Then those go that BACKUP_KEEP_DAILY,
BACKUP_KEEP_WEEKLY and BACKUP_KEEP_MONTHLY do not keep. The service goes on meanwhile.

docs/backup.md has more."""

BACKUPS_HELP = """\
Each with its age, its size in bytes (encrypted), how many accounts it holds, the schema and the
version of the server; or why it is not verified. What is not verified is neither restored nor deleted,
until you say by --accept NAME that it is yours: its objects are then compared with its manifest, and
the manifest is authenticated under BACKUP_MANIFEST_KEY."""

RESTORE_HELP = """\
Reads the whole backup first: checksum, key, schema. Then brings it into the database in one
transaction, compares the rows of each table with the manifest, and deletes again who was purged
since, by what the newest backup in the store and the database itself know. All sessions end, and
links and codes that were sent are void: users log in again. At last it migrates to the schema of
this program. Whatever goes wrong until the transaction ends, the database is as it was before.

--force is needed where the database holds accounts, or anything that is not this service's; --older where
a newer backup is known, as suspended accounts, removed roles and old passwords come back with an older one.
--identity names the file of the age identity that opens backups.
docs/backup.md has more."""

DRILL_HELP = """\
Restores the latest backup into a scratch database on the same server, compares it with its manifest,
calls functions on it (log-in, profile, search, and so on), says how long all of it took, and drops
the scratch. The service and its database are left alone. It ends with 1 when anything is wrong."""

_USES: dict[str, tuple[Dependency, ...]] = {
    "admin": ("database", "cache"),
    "events": ("database",),
}
"""What a group of commands works on, next to the service."""

_ADVICE = {
    "42P01": "The tables are not there yet: python -m shared.postgresql.migrate makes them.",
    "42703": "The tables are older than this program: python -m shared.postgresql.migrate brings them up to date.",
    "28P01": "Check the user and the password in DATABASE_URL.",
    "28000": "Check the user and the password in DATABASE_URL.",
    "3D000": "Check the name of the database in DATABASE_URL.",
}
"""By SQLSTATE."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; ends with 1 and what, why and what to do when it cannot be done, with 2 on a wrong call."""
    called = _parser().parse_args(arguments)
    logs.request_id.set(f"aegis-{uuid.uuid4()}")
    try:
        print(_run(called, data_folder.path()))
    except Refused as error:
        sys.exit(str(error))
    except InvalidSettings as error:
        sys.exit("\n".join(["Nothing was changed. The settings are not complete:", *error.problems]))
    except ServiceUnavailable:
        sys.exit(
            f"The database at {_database()} cannot be reached, or takes no more connections.\n"
            "Check DATABASE_URL and that the server runs, then repeat the command: it does no harm twice."
        )
    except DBAPIError as error:
        details = error.orig.args[0] if error.orig and error.orig.args else {}
        code, text = (details.get("C", ""), details.get("M", "")) if isinstance(details, dict) else ("", str(details))
        advice = _ADVICE.get(code, "Look into the log of PostgreSQL.")
        sys.exit(f"Nothing was changed. The database at {_database()} refuses: {text} ({code}).\n{advice}")
    except OSError as error:
        sys.exit(f"Nothing was changed. {error}")
    except KeyboardInterrupt:
        print("Ended by Ctrl-C.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _run(called: argparse.Namespace, data: Path) -> str:
    if uses := _USES.get(called.command.partition(" ")[0]):
        _load_settings(data, *uses)
    match called.command:
        case "admin create":
            result = administrators.create(called.email, called.locale)
        case "admin code":
            result = administrators.new_code(called.email)
        case "events dead list":
            result = dead_letters.table(_chosen(called))
        case "events dead show":
            result = dead_letters.show(called.number)
        case "events dead retry":
            result = dead_letters.retry(_chosen(called))
        case "events dead drop":
            result = dead_letters.drop(_chosen(called))
        case "events replay":
            result = replay.replay(called.since)
        case "failover":
            from knative.local import failover  # the servers of make up are not in the image

            result = failover.failover(data)
        case "keys rotate":
            file = Path(called.file) if called.file else data / data_folder.SECRETS
            result = signing_keys.rotate(file, cluster=called.cluster, restarted=called.restarted)
        case "backup" | "backups" | "restore" | "drill":
            result = _run_on_backups(called, data)
        case _:
            from knative.commands import releases  # its Kubernetes client is not in the image

            result = releases.run(called)
    return result


def _run_on_backups(called: argparse.Namespace, data: Path) -> str:
    if called.in_cluster:
        from knative.operations.backup import identity, in_cluster  # the Kubernetes client is not in the image

        file = getattr(called, "identity", "")
        identities = identity.read(file) if file else ()
        return in_cluster.run(called.context, called.command, _chosen_of_backups(called), identities, Progress())
    _load_settings(data, "database", "backups")
    from knative.commands import backups  # of heavy packages

    return backups.run(called)


def _chosen_of_backups(called: argparse.Namespace) -> list[str]:
    """The arguments that a command of backups has in a cluster, too."""
    match called.command:
        case "backups":
            return [word for name in called.accept for word in ("--accept", name)]
        case "restore":
            return [called.name, *(f"--{flag}" for flag in ("force", "older") if getattr(called, flag))]
        case _:
            return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aegis", description="What those who run the Aegis user service need.")
    groups = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    admin = groups.add_parser("admin", help="administrators").add_subparsers(required=True, metavar="COMMAND")
    create = _add(admin, "create", "make the first administrator", administrators.HELP)
    create.add_argument("email", metavar="EMAIL", help="the administrator's address")
    create.add_argument("--locale", choices=("ko", "en"), default="ko", help="language of the mails (ko)")
    create.set_defaults(command="admin create")
    code = _add(
        admin, "code", "print a new code for the first second factor of an administrator", administrators.CODE_HELP
    )
    code.add_argument("email", metavar="EMAIL", help="the administrator's address")
    code.set_defaults(command="admin code")

    events = groups.add_parser("events", help="events").add_subparsers(required=True, metavar="COMMAND")
    letters = _add(events, "dead", "those that could not be delivered", dead_letters.HELP)
    dead = letters.add_subparsers(required=True, metavar="COMMAND")
    listed = dead.add_parser("list", help="show which there are, newest first")
    _add_filters(listed)
    listed.set_defaults(command="events dead list", numbers=())
    shown = dead.add_parser("show", help="show all that is kept of one")
    shown.add_argument("number", metavar="N", type=_number, help="as the list has it")
    shown.set_defaults(command="events dead show")
    for name, effect in (("retry", "deliver them again"), ("drop", "delete them")):
        chosen = dead.add_parser(name, help=effect)
        which = chosen.add_mutually_exclusive_group(required=True)
        which.add_argument(
            "numbers", metavar="N", type=_number, nargs="*", default=(), help="their numbers in the list"
        )
        which.add_argument("--all", action="store_true", help="all that the list has")
        _add_filters(chosen)
        chosen.set_defaults(command=f"events dead {name}")
    again = _add(events, "replay", "send those again that a broker may have lost", replay.HELP)
    again.add_argument("--since", metavar="TIME", required=True, help="a time as 2026-01-31T09:30Z, or an age as 2h")
    again.set_defaults(command="events replay")

    _add_releases(groups)
    _add_backups(groups)

    failover = _add(groups, "failover", "make the replica of make up REPLICA=1 the primary", FAILOVER_HELP)
    failover.set_defaults(command="failover")

    keys = groups.add_parser("keys", help="signing keys").add_subparsers(required=True, metavar="COMMAND")
    rotate = _add(keys, "rotate", "replace the key that signs access tokens, step by step", signing_keys.HELP)
    rotate.add_argument(
        "--file", metavar="FILE", help="a secrets.env, or the secrets.json of a data folder (default: of DATA_DIR)"
    )
    proof = rotate.add_mutually_exclusive_group()
    proof.add_argument("--cluster", metavar="FILE", help="what kubectl says of Secret and pods; - for standard input")
    proof.add_argument(
        "--restarted",
        action="store_true",
        help="say that each process was started again since the last step, where neither make up nor kubectl can tell",
    )
    rotate.set_defaults(command="keys rotate")
    return parser


def _add(
    group: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help_: str, description: str
) -> argparse.ArgumentParser:
    """A command, or a group of commands, whose description is shown as it is written."""
    return group.add_parser(
        name, help=help_, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_releases(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def add(name: str, help_: str, description: str = "") -> argparse.ArgumentParser:
        parser = _add(groups, name, help_, description or help_)
        parser.add_argument("--context", metavar="CTX", help="the kube context (the current one)")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        parser.set_defaults(command=name)
        return parser

    prepare = add("prepare", "apply what no release may change, as an administrator of the cluster", PREPARE_HELP)
    prepare.add_argument(
        "--environment", metavar="ENV", required=True, help="development, staging, production, or a path"
    )
    deploy = add("deploy", "bring a release into a cluster, step by step", DEPLOY_HELP)
    deploy.add_argument("tag", metavar="TAG", help="of the image, or its digest (sha256:...)")
    deploy.add_argument(
        "--environment", metavar="ENV", required=True, help="development, staging, production, or a path"
    )
    deploy.add_argument(
        "--hold", metavar="SECONDS", type=int, default=60, help="between two shares of the traffic (60)"
    )
    deploy.add_argument(
        "--no-gate",
        action="store_true",
        help="without Prometheus: watch no alerts, and move all of the traffic at once",
    )
    rollback = add("rollback", "put an earlier release back into effect", ROLLBACK_HELP)
    rollback.add_argument("release", metavar="RELEASE", nargs="?", help="number or tag (the one before)")
    add("releases", "list what ran when, and what has the traffic now")
    add("status", "show revision, traffic, pods and address of each function")
    diff = add("diff", "show what a deployment would change (a server-side dry run)")
    diff.add_argument("tag", metavar="TAG", nargs="?", help="of the image (that of the live release)")
    diff.add_argument("--environment", metavar="ENV", required=True, help="development, staging, production, or a path")


def _add_backups(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def add(name: str, help_: str, description: str, other: str = "", other_help: str = "") -> argparse.ArgumentParser:
        parser = _add(groups, name, help_, description)
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--in-cluster", action="store_true", help="run it there, in a pod as the CronJob's own")
        if other:
            # Not for a cluster: its password would stand in the Job.
            where.add_argument(other, metavar="URL", dest="url", help=other_help)
        parser.add_argument("--context", metavar="CTX", help="the kube context of --in-cluster (the current one)")
        parser.set_defaults(command=name, url="")
        return parser

    add("backup", "take a backup of the database", BACKUP_HELP)
    listed = add("backups", "list the backups, newest first", BACKUPS_HELP)
    listed.add_argument("--accept", metavar="NAME", action="append", default=[], help="vouch for one, and no list")
    of_other = "of another database (DATABASE_URL)"
    restore = add("restore", "bring a backup into the database", RESTORE_HELP, "--into", of_other)
    restore.add_argument("name", metavar="NAME", help="as aegis backups lists it, or latest")
    restore.add_argument("--force", action="store_true", help="replace what the database holds")
    restore.add_argument("--older", action="store_true", help="restore it though a newer one is known")
    on_other = "of a database on another server (DATABASE_URL)"
    drill = add("drill", "try out the latest backup", DRILL_HELP, "--on", on_other)
    for opening in (restore, drill):
        opening.add_argument(
            "--identity", metavar="FILE", default="", help="the age identity that opens backups; - for standard input"
        )


def _load_settings(data: Path, *uses: Dependency) -> None:
    """Takes the settings of the environment; where it names no database, those of the running local service."""
    if not (os.environ.get("DATABASE_URL") or os.environ.get("DB_HOST")):
        try:
            local = json.loads((data / data_folder.ENVIRONMENT).read_text())
        except FileNotFoundError:
            names = " and ".join(name for use in uses for name in REQUIRED_BY[use])
            raise Refused(
                f"Nothing was changed. DATABASE_URL is not set, and no service runs on {data}.\n"
                f"Start it with make up (DATA_DIR names another folder), or set {names}."
            ) from None
        os.environ.update({name: value for name, value in local.items() if not os.environ.get(name)})
    load(os.environ, uses)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--function", metavar="F", help="only what this function could not process, as send_email")
    parser.add_argument("--type", metavar="T", help="only events of this type, as registered.v1")


def _number(text: str) -> int:
    """The number of a dead letter, as PostgreSQL has them."""
    number = int(text) if text.isdecimal() else 0
    if not 0 < number < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a dead letter")
    return number


def _chosen(called: argparse.Namespace) -> dead_letters.Chosen:
    return dead_letters.Chosen(called.numbers, called.function, called.type)


def _database() -> str:
    """Where the database is, without the password."""
    return settings().database_url.rpartition("@")[2]


if __name__ == "__main__":
    main()
