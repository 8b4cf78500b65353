"""Generated pages are what the code says: every key and every command is described."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["configuration", "commands"])
def test_the_page_is_up_to_date(page: str) -> None:
    script = DOCS / f"build_{page}.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == module.build(), f"run: .venv/bin/python docs/build_{page}.py"


def test_every_command_and_argument_says_what_it_is_for() -> None:
    for line in (DOCS / "commands.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            assert line.split("|")[2].removesuffix("(required) ").strip(), line
