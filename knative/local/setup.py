"""Install the packages of a lock file into .venv if needed: python setup.py requirements-local.lock

Uses only the standard library, as nothing is installed yet.
"""

from __future__ import annotations  # lets an older Python reach the message below

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
LOCAL, DEV = "requirements-local.lock", "requirements-dev.lock"
PURPOSES = {LOCAL: "that the service runs on", DEV: "of the service, its tests and tools"}
INSTALLED = VENV / "installed"
"""The digests of the lock files that .venv satisfies, one per line."""
LAST_LINES = 6


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Choose one: make PYTHON=python3.11 ..."
        )
    lock = sys.argv[1]
    if is_installed(lock):
        return
    with (ROOT / "pyproject.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two commands at once, one installs and the other waits
        if not is_installed(lock):
            install(lock)


def is_installed(lock: str) -> bool:
    """Return whether .venv has the packages of this lock. requirements-dev.lock includes requirements-local.lock."""
    return any(digest(each) in installed() for each in {lock, DEV})


def installed() -> list[str]:
    return INSTALLED.read_text().split() if INSTALLED.is_file() else []


def digest(lock: str) -> str:
    return hashlib.sha256((ROOT / lock).read_bytes() + sys.version.encode()).hexdigest()


def install(lock: str) -> None:
    """Add to .venv if everything in it is still needed; otherwise create it again."""
    started = time.monotonic()
    count = len(re.findall(r"^[\w.-]+==", (ROOT / lock).read_text(), re.MULTILINE))
    say(f"Installing the {count} packages {PURPOSES[lock]} into .venv, once. This can take a minute.")
    kept = installed()
    if digest(LOCAL) not in kept:
        kept = []
        shutil.rmtree(VENV, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", VENV],
            "Python cannot create a virtual environment. On Debian and Ubuntu: apt-get install python3-venv",
        )
    run(
        [VENV / "bin" / "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
         # The lock has all packages. Older pips search newer releases of packages with extras, and fail.
         "--no-deps", "--require-hashes", "--only-binary", ":all:",
         "--no-compile",  # most modules are never imported, and Python compiles the others on first use
         "--requirement", ROOT / lock],
        "The packages could not be installed. Nothing is compiled here, so each needs a wheel for this machine: "
        "Linux with glibc or macOS, on x86-64 or ARM64, with CPython 3.11 to 3.14. "
        "Otherwise check that the package index can be reached.",
        count,
    )  # fmt: skip
    INSTALLED.write_text("\n".join([*kept, digest(lock)]))
    size = sum(file.lstat().st_blocks for file in VENV.rglob("*")) * 512
    say(f"Installed in {time.monotonic() - started:.0f} s: .venv has {size / 2**20:.0f} MB.")


def run(command: list[str | Path], advice: str, packages: int = 0) -> None:
    """Run a command. If it fails, exit with its last lines and the advice.

    Args:
        packages: how many it downloads, for the progress shown in a terminal.
    """
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    done = 0
    for line in process.stdout or ():
        last.append(line.rstrip())
        if package := re.match(r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line):
            done += 1
            show(f"  {done} of {packages}: {package[1]}")
        elif line.startswith("Installing"):
            show("  unpacking")
    show("")
    if process.wait():
        sys.exit("\n".join([*(f"    {line}" for line in last), advice]))


def say(line: str) -> None:
    print(line, flush=True)


def show(line: str) -> None:
    """Replace the last line of a terminal."""
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)


if __name__ == "__main__":
    main()
