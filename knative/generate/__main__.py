"""python -m knative.generate [--check]: write the generated files, or list those that differ and exit with 1."""

import sys
from pathlib import Path

from knative.generate import functions_page, imports, manifests, settings_page
from shared.events import contract
from shared.framework.registry import EVENT_FUNCTIONS, HTTP_FUNCTIONS, EventFunction, HttpFunction, load_all

ROOT = Path(__file__).parents[2]
MANIFESTS = Path("knative", "functions")
IMPORTS = Path("tests", "imports.txt")


def generated() -> dict[Path, str]:
    """Return the text of each generated file by its path in the repository."""
    names = sorted(load_all())
    functions: dict[str, HttpFunction | EventFunction] = {**HTTP_FUNCTIONS, **EVENT_FUNCTIONS}
    scheduled = [function for name in names if (function := EVENT_FUNCTIONS.get(name)) and function.schedule]
    return {
        **{MANIFESTS / f"{name}.yaml": manifests.manifest(functions[name]) for name in names},
        MANIFESTS / "kustomization.yaml": manifests.kustomization(names),
        Path("knative", "components", "dispatcher", "schedules.yaml"): manifests.cron_jobs(scheduled),
        Path("docs", "functions.md"): functions_page.page(HTTP_FUNCTIONS.values(), EVENT_FUNCTIONS.values()),
        Path("docs", "settings.md"): settings_page.page(functions.values()),
    }


def main() -> None:
    files = generated()
    obsolete = sorted({path.relative_to(ROOT) for path in (ROOT / MANIFESTS).glob("*.yaml")} - files.keys())
    if sys.argv[1:] == ["--check"]:
        different = [path for path, text in files.items() if _read(path) != text]
        if different or obsolete:
            sys.exit("\n".join(f"{path} is outdated: run make generate" for path in different + obsolete))
        return
    contract.main()
    # Too slow for --check. A test compares it.
    files[IMPORTS] = imports.imports(sorted(load_all()))
    for path, text in files.items():
        if _read(path) != text:
            (ROOT / path).write_text(text, "utf-8")
            print(f"wrote {path}")
    for path in obsolete:
        (ROOT / path).unlink()
        print(f"removed {path}")


def _read(path: Path) -> str:
    file = ROOT / path
    return file.read_text("utf-8") if file.is_file() else ""


if __name__ == "__main__":
    main()
