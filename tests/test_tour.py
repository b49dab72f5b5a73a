"""The tour that `make tour` takes."""

import os
import subprocess
import sys

from tests.conftest import DATA, ROOT


def tour(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.tour"],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(DATA), "URL": os.environ["PUBLIC_URL"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tour_calls_every_operation() -> None:
    done = tour()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "operations answered as they should" in done.stdout


def test_a_service_that_is_not_there_is_told_in_one_line() -> None:
    done = tour(URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
