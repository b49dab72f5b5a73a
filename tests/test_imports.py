"""What each function imports when it starts: a cold start pays for all of it, and a first use only for itself."""

import pytest

from knative.generate.imports import imports
from shared.framework.registry import load_all
from tests.conftest import ROOT

pytestmark = pytest.mark.no_service


def test_each_function_starts_with_the_packages_that_are_committed_and_no_others() -> None:
    committed = (ROOT / "tests" / "imports.txt").read_text("utf-8")
    assert imports(sorted(load_all())) == committed, "run `make generate`, and commit what it writes if that is meant"
