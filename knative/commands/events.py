"""`aegis events`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from knative.commands.command import Command, Group, use_settings
from knative.terminal import Result

if TYPE_CHECKING:
    from knative.operations.dead_letters import Chosen


def add_to(aegis: click.Group) -> None:
    aegis.add_command(events)


@click.group(cls=Group)
def events() -> None:
    """Retry or drop events that a function could not process, and replay events."""


@events.group(cls=Group)
def dead() -> None:
    """Handle dead letters: events that a function could not process.

    The function rejected the event, or failed at every attempt. A dead letter is kept until you retry or drop it.
    Find the cause first: the error shows what the function answered.

    A retry delivers the event again to every function that subscribes to it. Functions that have already
    processed it ignore it. If it fails again, it is listed again. See docs/events.md.

    Settings come from the environment (DATABASE_URL). Without it, the command uses the service that make up runs
    on DATA_DIR (.local).
    """


class _Number(click.ParamType[int]):
    """The number of a dead letter, a bigint of PostgreSQL."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = int(value) if str(value).isdecimal() else 0
        if not 0 < number < 2**63:
            self.fail(f"{value!r} is not the number of a dead letter", param, ctx)
        return number


def _filters(command: Callable[..., Result]) -> Callable[..., Result]:
    of_type = click.option("--type", "type_", metavar="T", help="Only events of this type, such as registered.v1.")
    by = click.option("--function", metavar="F", help="Only events that this function failed on, such as send_email.")
    return by(of_type(command))


def _which(command: Callable[..., Result]) -> Callable[..., Result]:
    numbers = click.argument("numbers", metavar="[N]...", nargs=-1, type=_Number())
    return numbers(click.option("--all", "is_all", is_flag=True, help="All that match the filters.")(_filters(command)))


def _chosen(numbers: tuple[int, ...], is_all: bool, function: str | None, type_: str | None) -> "Chosen":
    from knative.operations.dead_letters import Chosen

    if numbers and is_all:
        raise click.UsageError("--all is not allowed with numbers.")
    if not numbers and not is_all:
        raise click.UsageError("Give the numbers of dead letters, or --all.")
    return Chosen(numbers, function, type_)


@dead.command("list", cls=Command, examples=("aegis events dead list", "aegis events dead list --function send_email"))
@_filters
def list_(function: str | None, type_: str | None) -> Result:
    """List dead letters, newest first."""
    use_settings("database")
    from knative.operations import dead_letters

    return dead_letters.table(dead_letters.Chosen((), function, type_))


@dead.command(cls=Command, examples=("aegis events dead show 12", "aegis events dead show 12 --json"))
@click.argument("number", metavar="N", type=_Number())
def show(number: int) -> Result:
    """Show one dead letter in full."""
    use_settings("database")
    from knative.operations import dead_letters

    return dead_letters.show(number)


@dead.command(
    cls=Command, examples=("aegis events dead retry 12 13", "aegis events dead retry --all --function send_email")
)
@_which
def retry(numbers: tuple[int, ...], is_all: bool, function: str | None, type_: str | None) -> Result:
    """Deliver dead letters again."""
    chosen = _chosen(numbers, is_all, function, type_)
    use_settings("database")
    from knative.operations import dead_letters

    return dead_letters.retry(chosen)


@dead.command(cls=Command, examples=("aegis events dead drop 12", "aegis events dead drop --all --type registered.v1"))
@_which
def drop(numbers: tuple[int, ...], is_all: bool, function: str | None, type_: str | None) -> Result:
    """Delete dead letters."""
    chosen = _chosen(numbers, is_all, function, type_)
    use_settings("database")
    from knative.operations import dead_letters

    return dead_letters.drop(chosen)


@events.command(
    cls=Command, examples=("aegis events replay --since 2h", "aegis events replay --since 2026-01-31T09:30Z")
)
@click.option("--since", metavar="TIME", required=True, help="A time such as 2026-01-31T09:30Z, or an age such as 2h.")
def replay(since: str) -> Result:
    """Send events again that Kafka may have lost.

    The relay sends all events since the given time again, in order, after those that are waiting. Use this when
    Kafka has silently lost part of the topic. You do not need it when Kafka comes back without the topic or with
    fewer events: the relay detects that itself.

    Sending events again is safe: functions ignore what they have processed. The outbox keeps events for 8 days.

    Settings come from the environment (DATABASE_URL). Without it, the command uses the service that make up runs
    on DATA_DIR (.local).
    """
    use_settings("database")
    from knative.operations import replay

    return replay.replay(since)
