"""`aegis failover`."""

import click

from knative import data_folder
from knative.commands.command import Command
from knative.terminal import Result


def add_to(aegis: click.Group) -> None:
    aegis.add_command(failover)


@click.command(cls=Command, examples=("aegis failover", "DATA_DIR=.local2 aegis failover"))
def failover() -> Result:
    """Make the replica of make up REPLICA=1 the primary.

    First the old primary is fenced: whether it runs, hangs or is dead, it never takes writes again. When it comes
    back, it follows the new primary. Then the replica is promoted. Functions and relay switch by themselves.

    A primary that runs is shut down in order, and nothing is lost. If it is dead, the last transactions that it
    had not sent to the replica are lost; the next make up REPLICA=1 puts a new copy in its place.

    This is for make up alone. In a cluster see docs/failover.md.
    """
    from knative.local import failover

    return failover.failover(data_folder.path())
