"""Generated pages are what the code says: every key and every command is described."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def load(page: str) -> ModuleType:
    script = DOCS / f"build_{page}.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration", "commands", "benchmarks"])
def test_the_page_is_up_to_date(page: str) -> None:
    module = load(page)
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == module.build(), f"run: .venv/bin/python docs/build_{page}.py"


def test_every_command_and_argument_says_what_it_is_for() -> None:
    for line in (DOCS / "commands.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            assert line.split("|")[2].removesuffix("(required) ").strip(), line


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Path]:
    """The builder of the benchmark page, and a report of its folder as the harness writes it."""
    from benchmarks.harness import Figure, Options, at_least, at_most, run

    def measure(options: Options):
        yield Figure(name="speed", value=12.3456, unit="GB/s", bar=at_least(20), note="a | b")
        yield Figure(name="bytes", value=4.0, unit="B", bar=at_most(4.01))

    module = load("benchmarks")
    monkeypatch.setattr(module, "REPORTS", tmp_path)
    path = tmp_path / "secagg.json"
    path.write_text(run("secagg", measure, Options()).to_json(), encoding="utf-8")
    return module, path


def test_the_benchmark_page_shows_missed_bars_machine_and_date(report: tuple[ModuleType, Path]) -> None:
    module, path = report
    page = module.build()
    section = page.split("## secagg")[1]
    assert "| speed | 12.35 GB/s | ≥ 20 | **missed** | a \\| b |" in section
    assert "| bytes | 4 B | ≤ 4.01 | met |  |" in section
    found = json.loads(path.read_text())
    assert found["started"][:10] in section
    assert found["machine"]["processor"] in section
    assert page.count("Not measured yet") == page.count("\n## ") - 1


@pytest.mark.parametrize(("change", "why"), [({"quick": True}, "full run"), ({"benchmark": "dp"}, "full run")])
def test_a_quick_or_foreign_report_is_refused(report: tuple[ModuleType, Path], change: dict, why: str) -> None:
    module, path = report
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=why):
        module.build()


def test_a_report_of_no_benchmark_is_refused(report: tuple[ModuleType, Path]) -> None:
    module, path = report
    path.with_name("nothing.json").write_text(json.dumps(json.loads(path.read_text()) | {"benchmark": "nothing"}))
    with pytest.raises(ValueError, match="no such benchmark: nothing"):
        module.build()
