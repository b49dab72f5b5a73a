"""What `make up` and `make test` install."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.no_service


def pins(lock: str) -> set[str]:
    return set(re.findall(r"^[\w.-]+==\S+", (ROOT / lock).read_text(), re.MULTILINE))


def test_what_the_tests_need_includes_what_the_service_runs_on() -> None:
    assert pins("requirements.lock") <= pins("requirements-local.lock") <= pins("requirements-dev.lock")


def test_the_tour_needs_no_more_than_make_up_installs() -> None:
    local, dev = pins("requirements-local.lock"), pins("requirements-dev.lock")
    names = {pin.partition("==")[0].replace("-", "_") for pin in dev - local}
    absent = f"import sys; sys.modules.update(dict.fromkeys({names!r})); import tests.tour"
    done = subprocess.run([sys.executable, "-c", absent], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
