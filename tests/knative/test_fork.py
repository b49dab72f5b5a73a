"""Python programs that are forks of the runner."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are started as programs")


def run(tmp_path: Path, program: str, then: str) -> tuple[Any, str]:
    """What `then` prints as JSON of `child`, a fork that runs the program, and the child's log.

    From a process without threads, as the runner is.
    """
    (tmp_path / "program.py").write_text("def main():\n" + textwrap.indent(program, "    "))
    script = f"""
import json, os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
from knative.local.fork import Fork, preload
from pathlib import Path
with open("log", "wb") as log:
    child = Fork("a-name-of-more-than-15", "program", {{"ONLY": "this"}}, log)
print(json.dumps({then}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("program", "code", "log"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('what is wrong')", 1, "what is wrong\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("print('said')", 0, "said\n"),
    ],
)
def test_it_ends_as_a_program_would(tmp_path: Path, program: str, code: int, log: str) -> None:
    assert run(tmp_path, program, "child.wait(10)") == (code, log)


def test_an_error_is_in_its_log(tmp_path: Path) -> None:
    code, log = run(tmp_path, "1 / 0", "child.wait(10)")
    assert code == 1
    assert "ZeroDivisionError" in log


def test_it_has_its_environment_and_nothing_else_of_its_parent(tmp_path: Path) -> None:
    program = """\
import json, os, signal
handlers = [signal.getsignal(number) == signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
files = [number for number in range(3, 64) if os.path.exists(f"/proc/self/fd/{number}")]
print(json.dumps([dict(os.environ), os.getsid(0) == os.getpid(), files, handlers, open("/proc/self/comm").read()]))
"""
    code, log = run(tmp_path, program, "child.wait(10)")
    assert code == 0, log
    assert json.loads(log) == [{"ONLY": "this"}, True, [], [True] * 3, "a-name-of-more-\n"]


def test_it_can_be_killed_as_a_group_from_the_first_moment(tmp_path: Path) -> None:
    then = "[child.poll(), os.killpg(child.pid, signal.SIGKILL), child.wait(10), child.poll()]"
    assert run(tmp_path, "import time; time.sleep(60)", then)[0] == [None, None, -9, -9]


def test_what_is_imported_beforehand_opens_no_connection_and_starts_no_thread() -> None:
    script = """
import json, os
from knative.local import fork, up
from shared.runtime import settings
before = set(os.listdir("/proc/self/fd"))
fork.preload(up.PRELOADED)
import sys
assert "functions.login" in sys.modules
print(json.dumps([len(os.listdir("/proc/self/task")), sorted(set(os.listdir("/proc/self/fd")) - before),
                  settings.settings.cache_info().currsize]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, [], 0]


def test_what_cannot_be_imported_stops_nobody_else(tmp_path: Path) -> None:
    then = "[preload(['no_such_module', 'program']), 'program' in sys.modules, child.wait(10)]"
    assert run(tmp_path, "pass", then)[0] == [None, True, 0]
