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

    The command first fences the old primary, so that it never accepts writes again, whether it is running,
    hanging or dead. If it comes back, it follows the new primary. The command then promotes the replica.
    Functions and the relay switch to it by themselves.

    A running primary is shut down cleanly, and nothing is lost. If it is dead, the last transactions that it had
    not sent to the replica are lost, and the next make up REPLICA=1 replaces it with a new copy.

    This is only for make up. For a cluster, see docs/failover.md.
    """
    from knative.local import failover

    return failover.failover(data_folder.path())
