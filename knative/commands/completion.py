"""`aegis completion`."""

import click
from click.shell_completion import get_completion_class

from knative.terminal import Refused, Result


def add_to(aegis: click.Group) -> None:
    aegis.add_command(completion)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> Result:
    """Print a completion script for bash or zsh.

    \b
    bash, in ~/.bashrc (bash 4.4 or newer):
      eval "$(/path/to/aegis completion bash)"

    \b
    zsh, in ~/.zshrc after compinit, with the folder of aegis on the PATH:
      eval "$(aegis completion zsh)"

    Then type aegis and press Tab. In bash, ./aegis completes as well.
    """
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise Refused(f"There is no completion for {shell}.")
    script = completion_class(ctx.find_root().command, {}, "aegis", "_AEGIS_COMPLETE").source()
    return Result(script, script)
