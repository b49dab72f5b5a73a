"""How a process ends that is told to."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.no_service

PROGRAM = """
import signal, threading
from shared.runtime.stopping import stopped_by

stopped = stopped_by(signal.SIGTERM)
thread = threading.Thread(target=stopped.wait)
thread.start()
assert not stopped.is_set()
assert not stopped.wait(0.001)
print(flush=True)
while not stopped.wait(0.0001):
    pass
thread.join()
"""


def test_a_process_ends_however_often_it_is_told_to() -> None:
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            for _ in range(200):
                process.terminate()
            try:
                # A signal that comes when the interpreter has taken down its handlers ends the process by itself.
                assert process.wait(10) in (0, -15)
            finally:
                process.kill()
