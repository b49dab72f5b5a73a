"""The commands on a cluster's releases, from the command line to what they print."""

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from knative.kubernetes import overlays
from knative.kubernetes.cluster import Cluster, Rejected
from knative.release import records, report
from knative.release.deploy import deploy, live_one
from knative.release.gate import Gate
from knative.release.prepare import prepare
from knative.release.records import Release
from knative.release.rollback import rollback
from knative.terminal import Progress, Refused

UNRELEASED = "none"
"""The tag of an environment of which no pod is started."""


def run(called: argparse.Namespace) -> str:
    """What a command prints: text, or JSON.

    Raises:
        Refused: it was not carried out.
    """
    try:
        result, text = _run(called, Cluster(called.context), Progress())
    except Rejected as error:
        raise Refused(f"The API server refuses: {error}") from error
    return json.dumps(result, ensure_ascii=False, indent=2) if called.json else text


def _run(called: argparse.Namespace, cluster: Cluster, progress: Progress) -> tuple[Any, str]:
    match called.command:
        case "deploy":
            environment = overlays.environment(called.environment, called.tag)
            url = os.environ.get("PROMETHEUS_URL", "")
            if not (url or called.no_gate):
                raise Refused(
                    "Nothing was changed. PROMETHEUS_URL is not set, so no alert could stop a bad release.\n"
                    "Set it, or say --no-gate."
                )
            gate = None if called.no_gate else Gate(url, environment.objects)
            return _told(deploy(cluster, environment, called.tag, gate=gate, hold=called.hold, progress=progress))
        case "prepare":
            done = prepare(cluster, overlays.environment(called.environment, UNRELEASED), progress)
            return done, "\n".join([*done, f"The namespace is ready for releases of {called.environment}."])
        case "rollback":
            return _told(rollback(cluster, called.release, progress))
        case "releases":
            rows = report.releases(cluster)
            columns = ("release", "tag", "state", "traffic", "schema", "who", "started")
            return rows, report.table(rows, columns) if rows else "No release has been deployed with aegis deploy."
        case "status":
            rows = report.status(cluster)
            shown = report.table(rows, ("function", "ready", "pods", "traffic", "url"))
            return rows, shown if rows else "No function is deployed in this cluster."
    live = live_one(records.releases(cluster))
    tag = called.tag or (live.tag if live else "")
    if not tag:
        raise Refused("No release is live in this cluster: name a TAG.")
    changes = report.diff(cluster, overlays.environment(called.environment, tag))
    return changes, "\n".join(f"{name}\n{text}" for name, text in changes.items()) or "Nothing would change."


def _told(release: Release) -> tuple[Any, str]:
    told = {name: value for name, value in asdict(release).items() if name not in ("objects", "before")}
    return told, f"{release.name} is live in {release.environment}."
