"""The commands for releases of a cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from knative.commands.command import Command, context_option, environment_option
from knative.terminal import Progress, Refused, Result

if TYPE_CHECKING:
    from knative.kubernetes.cluster import Cluster
    from knative.release.records import Release

UNRELEASED = "none"
"""The tag for rendering an environment whose pods are not started."""


def add_to(aegis: click.Group) -> None:
    for command in (prepare, deploy, rollback, releases, status, diff):
        aegis.add_command(command)


@contextmanager
def _cluster(context: str | None) -> Iterator["Cluster"]:
    from knative.kubernetes.cluster import Cluster, Rejected

    try:
        yield Cluster(context)
    except Rejected as error:
        raise Refused(f"The API server refused a request: {error}") from error


@click.command(
    cls=Command,
    examples=("aegis prepare --environment development", "aegis prepare --environment production --context admin@prod"),
)
@environment_option
@context_option
def prepare(environment: str, context: str | None) -> Result:
    """Apply what releases are not allowed to change. Requires a cluster administrator.

    This applies the namespace and its pod security level, network policies, service accounts, the permissions of
    the group aegis-release, and the secrets, volumes, monitors and operator-managed servers of the environment.
    Run it before the first release, and again when aegis deploy asks for it. If the namespace is already in use,
    its secrets are replaced with those of your files.

    See docs/release.md for what a release may and may not do afterwards.
    """
    with _cluster(context) as cluster:
        from knative.kubernetes import overlays
        from knative.release.prepare import prepare

        done = prepare(cluster, overlays.environment(environment, UNRELEASED), Progress())
    return Result("\n".join([*done, f"The namespace is ready for releases of {environment}."]), done)


@click.command(
    cls=Command,
    examples=(
        "aegis deploy v1.4.0 --environment staging",
        "aegis deploy v1.4.0 --environment production --hold 120 --json",
    ),
)
@click.argument("tag", metavar="TAG")
@environment_option
@click.option(
    "--hold", metavar="SECONDS", type=int, default=60, show_default=True, help="Time to watch each share of traffic."
)
@click.option("--no-gate", is_flag=True, help="Do without Prometheus: check no alerts and move all traffic at once.")
@context_option
def deploy(tag: str, environment: str, hold: int, no_gate: bool, context: str | None) -> Result:
    """Deploy a release to a cluster, step by step.

    TAG is the tag of the image, or its digest (sha256:...).

    The command first runs checks and changes nothing if one fails. It then migrates the database, starts the new
    revision of each function without traffic, and calls each one. It moves 10, 50 and 100 % of the traffic and
    checks production's alert rules after each step. Relay, dispatcher and routes come last. If an alert fires, a
    revision fails, or you press Ctrl-C, the traffic moves back at once and the command exits with 1. With
    --no-gate it checks no alerts and moves all traffic at once.

    PROMETHEUS_URL is the Prometheus with the alerts. Set GATEWAY_URL if the gateway cannot be reached at the
    address in its status. If the command is killed, the traffic stays where it is, and the next deploy or
    rollback first moves it back. See docs/release.md.
    """
    with _cluster(context) as cluster:
        from knative.kubernetes import overlays
        from knative.release.deploy import deploy
        from knative.release.gate import Gate

        wanted = overlays.environment(environment, tag)
        url = os.environ.get("PROMETHEUS_URL", "")
        if not (url or no_gate):
            raise Refused(
                "Nothing was changed. PROMETHEUS_URL is not set, so no alert could stop a bad release.\n"
                "Set it, or pass --no-gate."
            )
        gate = None if no_gate else Gate(url, wanted.objects)
        return _told(deploy(cluster, wanted, tag, gate=gate, hold=hold, progress=Progress()))


@click.command(cls=Command, examples=("aegis rollback", "aegis rollback v1.3.2"))
@click.argument("release", metavar="[RELEASE]", required=False)
@context_option
def rollback(release: str | None, context: str | None) -> Result:
    """Roll back to an earlier release.

    RELEASE is a number or tag from aegis releases. The default is the release before the live one, so running the
    command twice goes back two releases. Naming the live release keeps it.

    All functions move together: first all traffic moves to the revisions of the earlier release, then its relay,
    dispatcher, routes and settings are restored. The database is not changed: an earlier release works on the
    newer schema.
    """
    with _cluster(context) as cluster:
        from knative.release.rollback import rollback

        return _told(rollback(cluster, release, Progress()))


@click.command(cls=Command, examples=("aegis releases", "aegis releases --json | jq -r '.[0].tag'"))
@context_option
def releases(context: str | None) -> Result:
    """List the releases, when they ran, and which one has the traffic now."""
    with _cluster(context) as cluster:
        from knative.release import report

        rows = report.releases(cluster)
    columns = ("release", "tag", "state", "traffic", "schema", "who", "started")
    return Result(report.table(rows, columns) if rows else "No release has been deployed with aegis deploy.", rows)


@click.command(
    cls=Command, examples=("aegis status", "aegis status --json | jq -r '.[] | select(.ready | not) | .function'")
)
@context_option
def status(context: str | None) -> Result:
    """Show each function's revisions, traffic, pods and address."""
    with _cluster(context) as cluster:
        from knative.release import report

        rows = report.status(cluster)
    shown = report.table(rows, ("function", "ready", "pods", "traffic", "url"))
    return Result(shown if rows else "No function is deployed in this cluster.", rows)


@click.command(
    cls=Command, examples=("aegis diff v1.4.0 --environment staging", "aegis diff --environment staging --json")
)
@click.argument("tag", metavar="[TAG]", required=False)
@environment_option
@context_option
def diff(tag: str | None, environment: str, context: str | None) -> Result:
    """Show what a deployment would change (a server-side dry run).

    TAG is the tag of the image. The default is the tag of the live release.
    """
    with _cluster(context) as cluster:
        from knative.kubernetes import overlays
        from knative.release import records, report
        from knative.release.deploy import live_one

        live = None if tag else live_one(records.releases(cluster))
        tag = tag or (live.tag if live else "")
        if not tag:
            raise Refused("No release is live in this cluster. Pass a TAG.")
        changes = report.diff(cluster, overlays.environment(environment, tag))
    return Result("\n".join(f"{name}\n{text}" for name, text in changes.items()) or "Nothing would change.", changes)


def _told(release: "Release") -> Result:
    told = {name: value for name, value in asdict(release).items() if name not in ("objects", "before")}
    return Result(f"{release.name} is live in {release.environment}.", told)
