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
    "--cluster", metavar="FILE", help="What kubectl prints about the Secret and the pods; - for standard input."
)
@click.option(
    "--restarted",
    is_flag=True,
    help="Vouch that every process was restarted since the last step, where neither make up nor kubectl can tell.",
)
def rotate(file: str | None, cluster: str | None, restarted: bool) -> Result:
    """Replace the key that signs access tokens, step by step.

    Nobody is logged out. Each call takes the next safe step and says what comes after it. A step that is not safe
    yet is refused and changes nothing:

    \b
      1. create a new key, with which all processes verify once they are restarted
      2. when all were restarted: let the new key sign, while the old one still verifies
      3. when all were restarted again, and the last token of the old key has expired (after ten
         and a half minutes): drop the old key

    With make up: run the command, restart make up, and repeat. It knows which keys make up has read.

    In a cluster, use the file that make secrets has written:

    \b
      F=knative/overlays/development/data/secrets.env
      aegis keys rotate --file $F
      aegis deploy TAG --environment development

    TAG is the live release (aegis releases): deploying it again makes new pods, which read the Secret anew. The
    pods of the release before, kept for a rollback, must restart too: docs/operations.md has the command. Then
    take the next step. It is refused while the Secret has other keys than the file, or a pod is older than the
    last change of the Secret:

    \b
      kubectl -n aegis-user-service get secrets,pods -o json --show-managed-fields |
        aegis keys rotate --file $F --cluster -

    If you do not have the file, write it from the Secret first. Apply the file to the Secret after each step:

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
