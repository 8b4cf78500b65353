"""Execute the notebooks and write them as Markdown pages for the documentation.

Rules.
- Notebooks run in order in one new folder, since 03 and 04 go on with what 01 left there; nothing is written beside
  them, and the files in git stay without outputs.
- A notebook that raises ends everything; no page is written then.
- Links between notebooks and into docs/ are rewritten for the place of the pages, `docs/notebooks/`. Pages are in git,
  so that the site builds in seconds and whoever has no Python sees the pictures; a test compares them with notebooks.
Not done here: the site itself (MkDocs), stripping (`nbstripout notebooks/*.ipynb`).

    $ python notebooks/render.py
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

PAGES = FOLDER.parent / "docs" / "notebooks"

NAMES = ("01-first-study", "02-privacy-budget", "03-read-the-audit-trail", "04-bring-your-own-notes")
"""All notebooks, in the order in which they are read and run."""

CELL_S = 1_800
"""Seconds for one cell: a study takes a minute on two idle cores, and much longer on busy ones."""

_REWRITTEN = (
    (re.compile(r"!\[png\]"), "![picture]"),
    (re.compile(r"\n{4,}"), "\n\n"),  # code has two empty lines at most
    (re.compile(r"\]\((\d\d-[a-z0-9-]+)\.ipynb"), r"](\1.md"),
    (re.compile(r"\]\(\.\./docs/"), "](../"),
)


def execute(name: str, work: Path) -> Any:
    """Return notebook `name` with its outputs, executed in folder `work`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    # IPython keeps a history in the home folder; this run leaves nothing there.
    with tempfile.TemporaryDirectory() as private:
        client = NotebookClient(
            notebook,
            timeout=CELL_S,
            kernel_name="python3",
            coalesce_streams=True,
            # Sockets in a private folder instead of ports: nobody else on the machine can talk to the kernel.
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{private}/kernel"}}),
            resources={"metadata": {"path": str(work)}},
        )
        client.execute(env=_environment(private))
    return notebook


def write_page(name: str, notebook: Any, out: Path) -> Path:
    """Write an executed notebook as `out/NAME.md`, its pictures as `out/NAME_files/`; return the page."""
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"unique_key": name, "output_files_dir": f"{name}_files"}
    )
    for path, data in resources["outputs"].items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
    body = "\n".join(line.rstrip() for line in body.splitlines()) + "\n"
    for pattern, replacement in _REWRITTEN:
        body = pattern.sub(replacement, body)
    page = out / f"{name}.md"
    page.write_text(body)
    return page


def _environment(private: str) -> Mapping[str, str]:
    """Return what the kernel inherits: ours, but with pictures inline and no traces in the home folder."""
    kept = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    return {**kept, "IPYTHONDIR": private, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Execute the notebooks and write them as Markdown pages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all if left out (03 and 04 need 01)")
    parser.add_argument("--out", type=Path, default=PAGES, metavar="DIR", help="instead of docs/notebooks")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(NAMES))
    if unknown:
        parser.error(f"no notebook {unknown[0]}; there are {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(prefix="wardround-notebooks-") as work:
        executed = [(name, _timed(name, Path(work))) for name in sorted(chosen.names or NAMES)]
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, notebook in executed:
        sys.stderr.write(f"wrote {write_page(name, notebook, chosen.out)}\n")


def _timed(name: str, work: Path) -> Any:
    began = time.monotonic()
    notebook = execute(name, work)
    sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    return notebook


if __name__ == "__main__":
    main()
