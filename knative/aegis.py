"""The `aegis` command line for operators: `python -m knative.aegis --help`.

This module and knative/commands import only click. Each command imports what else it needs when it runs.
"""

import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from knative.commands import administrators, backups, completion, events, failover, keys, releases
from knative.commands.command import AS_JSON, Group
from knative.terminal import Refused, Result, write

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

_ADVICE = {
    "42P01": "The tables are missing: python -m shared.postgresql.migrate creates them.",
    "42703": "The tables are older than this program: python -m shared.postgresql.migrate upgrades them.",
    "28P01": "Check the user and the password in DATABASE_URL.",
    "28000": "Check the user and the password in DATABASE_URL.",
    "3D000": "Check the name of the database in DATABASE_URL.",
}
"""Advice by SQLSTATE."""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def aegis() -> None:
    """Operate the Aegis user service: releases, backups, administrators, undelivered events, signing keys.

    Results go to standard output, everything else to standard error. With --json a command prints one JSON
    document instead of text.
    """


for _module in (administrators, events, releases, backups, failover, keys, completion):
    _module.add_to(aegis)


@aegis.result_callback()
def _print(result: Result) -> None:
    as_json = click.get_current_context().meta.get(AS_JSON)
    text = json.dumps(result.data, ensure_ascii=False, indent=2) if as_json else result.text
    write(sys.stdout, f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Its help lists the exit codes."""
    try:
        aegis.main(arguments, prog_name="aegis", standalone_mode=False)
    except Refused as error:
        sys.exit(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        sys.exit(_explained(error))


def _explained(error: Exception) -> str:
    """Return the message for an unexpected error, with advice."""
    from sqlalchemy.exc import DBAPIError

    from shared.runtime.problems import ServiceUnavailable
    from shared.runtime.settings import InvalidSettings

    match error:
        case InvalidSettings():
            return "\n".join(["Nothing was changed. Some settings are missing or invalid:", *error.problems])
        case ServiceUnavailable():
            return (
                f"The database at {_database()} cannot be reached, or accepts no more connections.\n"
                "Check DATABASE_URL and that the server is running, then repeat the command. Repeating it is safe."
            )
        case DBAPIError():
            return _of_database(error)
        case OSError():
            return f"The command failed: {error}"
    if not sys.stderr.isatty():  # a log, where the traceback belongs
        raise error
    with tempfile.NamedTemporaryFile("w", prefix="aegis-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return (
        f"The command failed unexpectedly: {type(error).__name__}: {error}\n"
        f"This is a bug in aegis. Please report it with {file.name}, which has the details."
    )


def _of_database(error: "DBAPIError") -> str:
    details = error.orig.args[0] if error.orig and error.orig.args else {}
    code, text = (details.get("C", ""), details.get("M", "")) if isinstance(details, dict) else ("", str(details))
    advice = _ADVICE.get(code, "See the PostgreSQL log for details.")
    return f"The database at {_database()} rejected a statement: {text} ({code}).\n{advice}"


def _database() -> str:
    """Return the address of the database, without the password."""
    from shared.runtime.settings import settings

    return settings().database_url.rpartition("@")[2]


if __name__ == "__main__":
    main()
