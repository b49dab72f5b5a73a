"""The release before this one runs on the schema of this one: while a roll-out lasts, and after a roll-back.

So a migration only adds; what nothing uses any more goes a release later.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from knative.local.servers import LOOPBACK, free_port
from knative.local.supervisor import Process
from tests.conftest import ROOT, wait_for

UNTAGGED = ROOT / "tests" / "previous_release"
"""Names the commit that counts as the previous release where no tag is: before the first one, or in a clone without."""

NOBODY_CALLS = """
from shared.manifests import function_name, schedules
from tests.conftest import envelope, fire, post
for schedule in schedules():
    answer = fire(function_name(schedule.service))
    assert answer.status_code == 204, (schedule, answer.text)
given_up = envelope("given.up", knativeerrordest="http://send-email.aegis", knativeerrorcode="503")
answer = post("keep_dead_letter", "/", {}, **given_up)
assert answer.status_code == 204, answer.text
"""
"""What the tour leaves out: the schedules, and an event that nobody could process."""


def git(*arguments: str) -> str:
    """What git says; empty where it fails, or is not there."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the previous release."""
    commit = git("describe", "--tags", "--abbrev=0", "--match=v[0-9]*", "HEAD^") or UNTAGGED.read_text().strip()
    if not git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        pytest.skip(f"NOT TESTED: the previous release, {commit}, is not in this clone; fetch its whole history")
    tree = tmp_path_factory.mktemp("previous")
    archive = tree.with_suffix(".tar")
    git("archive", "--output", str(archive), commit)
    subprocess.run(["tar", "-xf", archive, "-C", tree], check=True)
    # A roll-back does not migrate, and Alembic refuses a schema that is newer than it knows.
    next(tree.glob("shared/**/migrate.py")).write_text("def main(): pass\n")
    return tree


@contextmanager
def up(tree: Path, data: Path) -> Iterator[dict[str, str]]:
    """The whole service of a tree, on servers of which the environment names the database; its settings."""
    port = str(free_port())
    data.mkdir()
    own = {"PYTHONPATH": str(tree), "PORT": port, "DATA_DIR": str(data), "URL": f"http://{LOOPBACK}:{port}"}
    environment = {**os.environ, **own, "REDIS_URL": "", "KAFKA_BOOTSTRAP_SERVERS": ""}
    with (data / "up.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "knative.local.up"], cwd=tree, env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: (data / "environment.json").exists() or process.poll() is not None)
        assert process.poll() is None, (data / "up.log").read_text()
        yield {**environment, **json.loads((data / "environment.json").read_text())}
    finally:
        process.terminate()
        process.wait(30)


def run(tree: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_previous_release_does_all_it_did_on_the_schema_of_this_one(
    previous: Path, own_database: Process, tmp_path: Path
) -> None:
    with up(previous, tmp_path / "data") as environment:
        assert "operations answered as they should" in run(previous, environment, "-m", "tests.tour")
        run(previous, environment, "-c", NOBODY_CALLS)
        assert "given.up" in run(previous, environment, "-m", "knative.release.aegis", "events", "dead", "list")
