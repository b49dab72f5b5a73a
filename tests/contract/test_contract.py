"""The API keeps what its OpenAPI document says, whatever it is sent: schemathesis with all of its checks."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

EXAMPLES = os.environ.get("EXAMPLES", "3")
"""Requests for each operation that are made at random; `make fuzz` asks for many more."""
SEED = () if "EXAMPLES" in os.environ else ("--seed", "1")
"""The same requests each time in `make test`: what is new is for `make fuzz` to find."""


def test_no_request_gets_a_5xx_or_an_answer_that_the_document_does_not_have(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            *("--config-file", ROOT / "tests" / "contract" / "schemathesis.toml"),
            *("run", f"{os.environ['PUBLIC_URL']}/openapi.json"),
            *("--max-examples", EXAMPLES, *SEED),
            *("--output-sanitize", "false"),
            *("--report", "junit", "--report-dir", tmp_path),
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.contract.hooks", "COLUMNS": "120"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
