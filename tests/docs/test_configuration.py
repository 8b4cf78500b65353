"""docs/configuration.md is what the models say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("build_configuration", DOCS / "build_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == module.build(), "run: .venv/bin/python docs/build_configuration.py"
