"""Sets up .venv with exactly what requirements-dev.lock pins; does nothing when that is done.

Runs with nothing but Python's standard library, before anything is installed.
"""

from __future__ import annotations  # so that an older Python gets as far as being told

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements-dev.lock"
DONE = VENV / "installed"
LAST_LINES = 6


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Name one: make PYTHON=python3.11 ..."
        )
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if is_done(wanted):
        return
    with (ROOT / "pyproject.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two commands at once, one sets up and the other waits
        if is_done(wanted):
            return
        print("setting up .venv, once (about 200 MB; a minute)", flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", VENV],
            "Python cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv",
        )
        run(
            [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
             # The lock names all of them. Older pips look for newer releases of what has extras, and end there.
             "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", LOCK],
            "The packages could not be installed. Nothing is compiled here, so each needs a wheel for this machine: "
            "Linux with glibc or macOS, on x86-64 or ARM64, with CPython 3.11 to 3.14. "
            "Otherwise check that the package index can be reached.",
        )  # fmt: skip
        DONE.write_text(wanted)


def is_done(wanted: str) -> bool:
    return DONE.is_file() and DONE.read_text() == wanted


def run(command: list[str | Path], advice: str) -> None:
    """Runs a command; ends with its last lines and the advice when it fails."""
    done = subprocess.run(
        [str(part) for part in command], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines()[-LAST_LINES:]
        sys.exit("\n".join([*(f"    {line}" for line in lines), advice]))


if __name__ == "__main__":
    main()
