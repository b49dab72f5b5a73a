"""Lints the OpenAPI and the AsyncAPI document with Redocly and Spectral: part of `make check`.

The linters need Node. Their packages are installed once, into .local/documents.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from shared.framework import asyncapi, openapi
from shared.framework.registry import EVENT_FUNCTIONS, HTTP_FUNCTIONS, load_all

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".local" / "documents"
DONE = INSTALLED / "installed"
URL = "https://api.aegis.test"
"""A made-up host: the linters refuse localhost and example.com."""


def main() -> None:
    if missing := [tool for tool in ("node", "npm") if not shutil.which(tool)]:
        print(f"NO {' AND NO '.join(missing).upper()}: the OpenAPI and the AsyncAPI document were not linted")
        return
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (HERE / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of two commands at once installs, and their documents do not mix
        if why_not := install(lock.read()):
            print(f"NO LINTERS: the OpenAPI and the AsyncAPI document were not linted, as npm says:\n{why_not}")
            return
        write_documents()
        lint()


def install(lock: str) -> str:
    """Installs what is not there yet; returns why that failed, as without a network, or nothing."""
    wanted = hashlib.sha256(lock.encode()).hexdigest()
    if DONE.is_file() and DONE.read_text() == wanted:
        return ""
    print("installing Redocly and Spectral, once (about 80 MB)", flush=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, INSTALLED)
    done = run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=60000")
    if said := said_by(done):
        return said
    DONE.write_text(wanted)
    return ""


def write_documents() -> None:
    load_all()
    documents = {
        "openapi": openapi.document(HTTP_FUNCTIONS.values(), URL),
        "asyncapi": asyncapi.document(EVENT_FUNCTIONS.values(), URL),
    }
    for name, document in documents.items():
        (INSTALLED / f"{name}.json").write_text(json.dumps(document, indent=2))


def lint() -> None:
    """Ends with what the linters have found."""
    documents = ("openapi.json", "asyncapi.json")
    started = [
        run("node_modules/.bin/redocly", "lint", "--config", HERE / "redocly.yaml", *documents),
        run("node_modules/.bin/spectral", "lint", "--ruleset", HERE / "spectral.yaml", "--fail-severity", "hint",
            *documents),
    ]  # fmt: skip
    if said := "".join(map(said_by, started)):
        sys.exit(said)


def run(*command: str | Path) -> "subprocess.Popen[str]":
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "NO_COLOR": "1"}
    return subprocess.Popen(
        command,
        cwd=INSTALLED,
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said_by(process: "subprocess.Popen[str]") -> str:
    """What a command that failed has printed; nothing of one that did not."""
    said, _ = process.communicate()
    return said or "it failed without a word" if process.returncode else ""


if __name__ == "__main__":
    main()
