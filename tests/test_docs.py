"""What the documents say about the repository is so."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.framework.registry import load_all
from tests.bench import model
from tests.cluster.documents import commands
from tests.conftest import ROOT

pytestmark = pytest.mark.no_service

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_every_test_that_the_security_table_names_is_there() -> None:
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named - there == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_licence_is_the_one_that_the_package_states() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license-files"] == ["LICENSE"]
    title, _, text = (ROOT / "LICENSE").read_text().partition("\n")
    assert title == f"{project['license']} License"
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in text


def test_the_table_of_functions_has_every_function() -> None:
    text = (ROOT / "docs" / "functions.md").read_text()
    assert {name for name in load_all() if f"functions/{name}.py" not in text} == set()


@pytest.mark.parametrize("document", ["README.md", "README.ko.md"])
def test_the_function_that_the_readme_shows_is_the_one_that_runs(document: str) -> None:
    text = (ROOT / document).read_text()
    (name,) = re.findall(r"\[(functions/\w+\.py)\]", text)
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown == (ROOT / name).read_text()


def test_the_index_leads_to_every_document() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([\w.-]+\.md)", (ROOT / "docs" / "README.md").read_text())) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_section_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*\.md)?#([^)]+)\)", document.read_text())
    targets = [(document.parent / link if link else document, anchor) for link, anchor in links]
    assert [(path.name, anchor) for path, anchor in targets if anchor not in anchors(path)] == []


def anchors(document: Path) -> set[str]:
    """The headings of a document as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("document", "table"),
    [
        ("autoscaling", model.one_pod),
        ("capacity", model.demand),
        ("capacity", model.stored),
        ("capacity", model.bottlenecks),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_table_of_capacity_is_what_the_model_computes(document: str, table: Callable[[], str]) -> None:
    """`python -m tests.bench.model` prints what should stand there."""
    assert table() in (ROOT / "docs" / f"{document}.md").read_text()


@pytest.mark.parametrize("document", ["README", "docs/operations"])
def test_a_document_has_the_same_commands_in_both_languages(document: str) -> None:
    english, korean = (commands(ROOT / f"{document}{language}.md") for language in ("", ".ko"))
    assert list(korean.values()) == list(english.values())


def test_the_readme_is_short() -> None:
    """A newcomer reads it in five minutes."""
    assert len((ROOT / "README.md").read_text().split()) <= 1300
