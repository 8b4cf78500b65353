"""The notebooks are stripped, use the product's own API, run to their end, and show what they promise."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
EXTRA = "needs the extra notebooks: pip install -c constraints.txt -e '.[notebooks]'"


def _render() -> Any:
    spec = importlib.util.spec_from_file_location("render_notebooks", FOLDER / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


render = _render()


def _cells(name: str, kind: str) -> list[str]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


# -- as they are in git


def test_every_notebook_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(render.NAMES)
    readme = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\(([0-9a-z-]+)\.ipynb\)", readme) == list(render.NAMES)


def test_outputs_are_stripped():
    pytest.importorskip("nbstripout", reason=EXTRA)
    paths = sorted(FOLDER.glob("*.ipynb"))
    outcome = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--verify", *paths], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, "run: nbstripout notebooks/*.ipynb\n" + outcome.stdout + outcome.stderr


def test_a_kept_output_would_be_found(tmp_path: Path):
    pytest.importorskip("nbstripout", reason=EXTRA)
    notebook = json.loads((FOLDER / f"{render.NAMES[0]}.ipynb").read_text())
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["kept"]}]
    path = tmp_path / "kept.ipynb"
    path.write_text(json.dumps(notebook))
    outcome = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", path], capture_output=True, check=False)
    assert outcome.returncode == 1


@pytest.mark.parametrize("name", render.NAMES)
def test_it_uses_public_python_only(name: str):
    code = "\n".join(_cells(name, "code"))
    assert not re.findall(r"^\s*[!%]", code, re.M), "no shell and no magic"
    assert not re.findall(r"^\s*(?:from|import) (?:peers|tests|wardround_demo)\b.*", code, re.M)
    private = [
        line for line in re.findall(r"^\s*from wardround\S* import .*", code, re.M) if re.search(r"[ .(]_[a-z]", line)
    ]
    assert not private
    assert "/work/" not in code + "\n".join(_cells(name, "markdown"))


@pytest.mark.parametrize("name", render.NAMES)
def test_links_resolve(name: str):
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(_cells(name, "markdown"))):
        assert target.startswith("https://") or (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", render.NAMES)
def test_its_page_is_of_this_notebook(name: str):
    page = (render.PAGES / f"{name}.md").read_text()
    code = re.findall(r"^```python\n(.*?)\n```$", page, re.M | re.S)
    again = "run: python notebooks/render.py"
    assert [part.split() for part in code] == [cell.split() for cell in _cells(name, "code")], again
    said = " ".join(page.split())
    for cell in _cells(name, "markdown"):
        start = " ".join(cell.split())[:60].split("](")[0]
        assert start in said, again
    _is_a_page(render.PAGES / f"{name}.md")


def test_the_script_refuses_an_unknown_name(tmp_path: Path):
    command = [sys.executable, FOLDER / "render.py", "05-nothing", "--out", tmp_path]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "no notebook 05-nothing" in outcome.stderr


# -- executed


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="session")
def executed(work: Path) -> dict[str, Any]:
    """Executed notebooks by name; filled in order, since 03 and 04 go on with what 01 leaves in `work`."""
    return {}


def _executed(name: str, executed: dict[str, Any], work: Path) -> Any:
    for reason in ("nbclient", "nbconvert", "ipykernel"):
        pytest.importorskip(reason, reason=EXTRA)
    if name.startswith("04"):
        pytest.importorskip("pyarrow", reason="04 writes and reads Parquet: pip install 'wardround[parquet]'")
        pytest.importorskip("wardround_client.data.check", reason="04 needs `wardround client data check`")
    needed = (render.NAMES[0], name) if name.startswith(("03", "04")) else (name,)
    for each in needed:
        if each not in executed:
            executed[each] = render.execute(each, work)
    return executed[name]


def _outputs(notebook: Any) -> list[Mapping[str, Any]]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def _said(notebook: Any) -> str:
    said = []
    for output in _outputs(notebook):
        data = output.get("data", {})
        said.append(output.get("text", "") or data.get("text/markdown", ""))
    return re.sub(r" +", " ", "\n".join(said))


PICTURES = {
    "01-first-study": 2,
    "02-privacy-budget": 7,
    "03-read-the-audit-trail": 2,
    "04-bring-your-own-notes": 2,
}

PROMISES = {
    "01-first-study": ["seen by 3 of 3 hospitals yes", "complete yes", "skin"],
    "02-privacy-budget": ["RDP", "replace-one", "refused", "at 5 of the members"],
    "03-read-the-audit-trail": ["NO content intact", "NO append-only", "NO seen by", "NO complete", "NO ε"],
    "04-bring-your-own-notes": ["data-patient-twice", "data-unknown-label", "nothing to refuse", "FHIR NDJSON"],
}


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.filterwarnings("default")  # jupyter's own; what the notebooks' kernels warn of is looked at below
@pytest.mark.parametrize("name", render.NAMES)
def test_it_runs_and_shows_what_it_promises(name: str, executed: dict[str, Any], work: Path, tmp_path: Path):
    notebook = _executed(name, executed, work)
    outputs, said = _outputs(notebook), _said(notebook)
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]
    assert [promise for promise in PROMISES[name] if promise not in said] == []
    for place in (str(work), str(ROOT), str(Path.home()) + "/"):
        assert place not in said, f"{place} is shown"
    assert _lonely_epsilons(said) == []
    _is_a_page(render.write_page(name, notebook, tmp_path))


def _lonely_epsilons(said: str) -> list[str]:
    """Outputs that name an ε must say its relation, δ and unit, the output as a whole."""
    if not re.search(r"ε = \d", said):
        return []
    return [word for word in ("add-or-remove-one", "δ = ", "patient") if word not in said]


def _is_a_page(page: Path) -> None:
    text = page.read_text()
    assert ".ipynb)" not in text
    assert "](../docs/" not in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(pictures) == PICTURES[page.stem]
    for picture in pictures:
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.filterwarnings("default")
def test_nothing_is_left_running_or_lying_about(executed: dict[str, Any], work: Path):
    _executed("01-first-study", executed, work)
    assert {path.name for path in work.iterdir()} == {"first-study"}
    assert not list((work / "first-study").glob("tampered-*"))
    assert not _daemons_of(work)


def _daemons_of(work: Path) -> list[str]:
    """Command lines of wardround daemons whose working folder is `work`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            here = (process / "cwd").resolve() == work.resolve()
        except OSError:
            continue  # ended meanwhile, or another user's
        if here and b"wardround_common" in words:
            found.append(b" ".join(words).decode(errors="replace"))
    return found
