"""What is edited while `make up` runs."""

import json
import shutil
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_for
from tests.knative.test_up import Up, running

LOGIN = "/api/v1/users/login"
TITLE = "The e-mail address or the password is wrong"
pytestmark = pytest.mark.slow

ONLY_HERE = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the log has the reason, the terminal has not")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, to be edited."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("functions", "shared", "knative"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", folder)
    return folder


@pytest.fixture(scope="module")
def up(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("data"), checkout) as up:
        yield up


@pytest.fixture
def edit(checkout: Path, up: Up) -> Iterator[Callable[[str, str, str], int]]:
    """Replaces a text in a file, and puts the file back afterwards; returns how much the terminal showed before."""
    originals: dict[Path, str] = {}

    def replace(name: str, old: str, new: str) -> int:
        file = checkout / name
        content = originals.setdefault(file, file.read_text())
        assert old in content
        shown = len(up.output)
        file.write_text(content.replace(old, new, 1))
        return shown

    yield replace
    for file, content in originals.items():
        shown = len(up.output)
        if file.read_text() != content:
            file.write_text(content)
            wait_for(partial(is_shown, up, "served after", shown))


def refusal(up: Up, path: str = LOGIN, **body: str) -> tuple[int, str]:
    """The status and the title of a refused request; a log-in with a wrong password, when nothing else is said."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        up.request(path, body or {"email": "nobody@example.com", "password": "copper lantern drifts south"})
    return refused.value.code, json.loads(refused.value.read())["title"]


def is_served(up: Up, title: str) -> bool:
    return refusal(up)[1] == title


def is_shown(up: Up, text: str, since: int) -> bool:
    """Whether the terminal has shown a text since it had shown so many characters."""
    return text in up.output[since:]


def test_an_edited_function_is_served_and_no_request_fails(up: Up, edit: Callable[[str, str, str], int]) -> None:
    ended = threading.Event()

    def ask() -> set[int]:
        statuses = set()
        while not ended.is_set():
            statuses.add(refusal(up, email="nobody")[0])
        return statuses

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for title in ("Edited", "Edited again"):
                edit("functions/login.py", TITLE, title)
                wait_for(partial(is_served, up, title))
        finally:
            ended.set()
    assert [future.result() for future in asking] == [{422}, {422}]
    assert "functions/login.py: served after" in up.output


def test_an_edit_of_shared_code_is_served_by_every_function(up: Up, edit: Callable[[str, str, str], int]) -> None:
    shown = edit("shared/runtime/problems.py", "Some fields are not valid", "Edited")
    wait_for(partial(is_shown, up, "shared/runtime/problems.py: served after", shown), seconds=120)
    for path in (LOGIN, "/api/v1/users", "/api/v1/users/password/forgot"):
        assert refusal(up, path, email="nobody") == (422, "Edited")


@ONLY_HERE
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def login(", "def login(:", "SyntaxError"),
        ("class Credentials(", "1 / 0\n\n\nclass Credentials(", "ZeroDivisionError: division by zero"),
    ],
)
def test_code_that_cannot_be_imported_is_told_by_its_line_and_the_old_is_served(
    up: Up, edit: Callable[[str, str, str], int], old: str, new: str, reason: str
) -> None:
    line = next(
        number
        for number, text in enumerate((ROOT / "functions/login.py").read_text().splitlines(), 1)
        if text.startswith(old)
    )
    shown = edit("functions/login.py", old, new)
    wait_for(partial(is_shown, up, f"functions/login.py:{line}: {reason}", shown))
    assert "the previous version is still served" in up.output[shown:]
    assert "Traceback" not in up.output
    assert refusal(up) == (401, TITLE)


def test_a_function_that_does_not_start_leaves_the_old_one(up: Up, edit: Callable[[str, str, str], int]) -> None:
    shown = edit("functions/login.py", "def login(", "def log_in(")
    wait_for(partial(is_shown, up, "login: does not start", shown))
    assert "a function named 'login'" in up.output[shown:]
    assert refusal(up) == (401, TITLE)
