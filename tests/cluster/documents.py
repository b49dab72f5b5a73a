"""The commands of a document, to be run as a reader would."""

import re
import subprocess
import textwrap
from pathlib import Path

from tests.conftest import ROOT


def commands(document: Path) -> dict[str, list[str]]:
    """The indented blocks of a document, by the heading (# or ##) above them. Fenced blocks are no commands."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for section in re.split(r"^##? ", text, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        blocks = re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
        found[heading] = [textwrap.dedent(block) for block in blocks]
    return found


def shell(script: str) -> str:
    """What a script prints; fails with all that it has said when one of its commands does."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )
    print(f"\n{script}\n{done.stdout}")
    assert done.returncode == 0, done.stdout
    return done.stdout
