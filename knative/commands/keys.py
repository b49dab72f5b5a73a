"""`aegis keys`."""

from pathlib import Path

import click

from knative import data_folder
from knative.commands.command import Command, Group
from knative.terminal import Result


def add_to(aegis: click.Group) -> None:
    aegis.add_command(keys)


@click.group(cls=Group)
def keys() -> None:
    """Rotate the signing keys."""


@keys.command(
    cls=Command,
    examples=("aegis keys rotate", "aegis keys rotate --file knative/overlays/staging/data/secrets.env --cluster -"),
)
@click.option(
    "--file", metavar="FILE", help="A secrets.env, or the secrets.json of a data folder (default: that of DATA_DIR)."
)
@click.option(
    "--cluster", metavar="FILE", help="kubectl's output for the Secret and the pods (see above); - for standard input."
)
@click.option(
    "--restarted",
    is_flag=True,
    help="Confirm that every process was restarted after the last step, if neither make up nor kubectl can show it.",
)
def rotate(file: str | None, cluster: str | None, restarted: bool) -> Result:
    """Replace the key that signs access tokens, step by step.

    Users stay logged in. Run the command once for each step; it performs the step and says what to do before the
    next one. If a step is not safe yet, the command refuses and changes nothing. The steps are:

    \b
      1. create a new key; all processes accept its tokens once they are restarted
      2. after all processes were restarted: sign with the new key; the old one still verifies
      3. after all processes were restarted again and the last token of the old key has expired
         (ten and a half minutes later): drop the old key

    With make up: run the command, restart make up, and repeat. The command knows which keys make up has read.

    In a cluster, use the file that make secrets wrote:

    \b
      F=knative/overlays/development/data/secrets.env
      aegis keys rotate --file $F
      aegis deploy TAG --environment development

    TAG is the live release (see aegis releases): deploying it again creates new pods, which read the new Secret.
    The pods of the previous release, kept for a rollback, must restart too: see docs/operations.md. Then take the
    next step. It is refused if the keys in the Secret differ from the file, or if a pod is older than the last
    change of the Secret:

    \b
      kubectl -n aegis-user-service get secrets,pods -o json --show-managed-fields |
        aegis keys rotate --file $F --cluster -

    If you do not have the file, first write it from the Secret. After each step, apply the file to the Secret:

    \b
      kubectl -n aegis-user-service get secret user-service-secrets -o go-template='
        {{- range $k, $v := .data}}{{$k}}={{$v | base64decode}}{{"\\n"}}{{end}}' > secrets.env
      kubectl -n aegis-user-service create secret generic user-service-secrets \\
        --from-env-file secrets.env --dry-run=client -o yaml | kubectl apply -f -
    """
    if cluster and restarted:
        raise click.UsageError("--restarted is not allowed with --cluster.")
    from knative.operations import signing_keys

    path = Path(file) if file else data_folder.path() / data_folder.SECRETS
    return signing_keys.rotate(path, cluster=cluster, restarted=restarted)
