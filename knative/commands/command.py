"""The base of all commands: --json, examples and exit codes in the help, and loading the settings."""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from knative import data_folder
from knative.terminal import Refused

if TYPE_CHECKING:
    from shared.runtime.settings import Dependency

AS_JSON = "aegis.json"
"""Key in the context's `meta`: print the result as JSON."""

OVERLAYS = Path(__file__).parents[1] / "overlays"


class Command(click.Command):
    """A command with --json, and with examples and exit codes in its help."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._examples = examples
        self.params.append(
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_as_json, help="Print the result as JSON."
            )
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self._examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        _write_exit_codes(formatter)


class Group(click.Group):
    """A group whose help has exit codes and lists commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_exit_codes(formatter)


def _write_exit_codes(formatter: click.HelpFormatter) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl(
            [("0", "done"), ("1", "refused or failed"), ("2", "wrong usage"), ("130", "stopped by Ctrl-C")]
        )


def _as_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[AS_JSON] = value


def _environments(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    names = sorted(file.parent.name for file in OVERLAYS.glob("*/kustomization.yaml"))
    return [CompletionItem(name) for name in names if name.startswith(typed)]


environment_option = click.option(
    "--environment",
    metavar="ENV",
    required=True,
    shell_complete=_environments,
    help="development, staging, production, or the path of an overlay.",
)
context_option = click.option("--context", metavar="CTX", help="The kube context (default: the current one).")


def use_settings(*uses: "Dependency") -> None:
    """Load the settings from the environment, or from the running local service if no database is set there.

    Raises:
        Refused: neither is available.
        InvalidSettings
    """
    from shared.runtime import logs
    from shared.runtime.settings import REQUIRED_BY, load

    logs.request_id.set(f"aegis-{uuid.uuid4()}")
    if not (os.environ.get("DATABASE_URL") or os.environ.get("DB_HOST")):
        data = data_folder.path()
        try:
            local = json.loads((data / data_folder.ENVIRONMENT).read_text())
        except FileNotFoundError:
            names = " and ".join(name for use in uses for name in REQUIRED_BY[use])
            raise Refused(
                f"Nothing was changed. DATABASE_URL is not set, and no local service is running on {data}.\n"
                f"Start it with make up (DATA_DIR names another folder), or set {names}."
            ) from None
        os.environ.update({name: value for name, value in local.items() if not os.environ.get(name)})
    load(os.environ, uses)
