"""Every error that the sources can raise is a row of docs/errors.md with a test, and the other way round.

The scan is static: it finds every construction of an error class in the four source trees. A code must be a string
literal there, because a person looks it up with a search.
"""

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from wardround_common import errors

ROOT = Path(__file__).parents[2]
TREES = ("common", "server", "client", "demo")
CLASSES = {
    name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.WardroundError)
}


def _subclasses() -> set[str]:
    """Return error classes that the trees derive from ours, such as the demo's."""
    found = set()
    for path in (path for tree in TREES for path in (ROOT / tree).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") in CLASSES for base in node.bases):
                found.add(node.name)
    return found


CLASSES |= _subclasses()


@dataclass(frozen=True, kw_only=True)
class Raised:
    """One construction of an error in the sources; `code` is None if it is no literal."""

    where: str
    code: str | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of docs/errors.md."""

    code: str
    text: str
    next_step: str
    tests: tuple[str, ...]


def scan(source: str, file: str) -> list[Raised]:
    """Return every construction of an error class in `source`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name not in CLASSES:
            continue
        first = node.args[0] if node.args else None
        literal = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
        found.append(Raised(where=f"{file}:{node.lineno}", code=literal))
    return found


def sources() -> list[Raised]:
    files = [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]
    return [raised for path in files for raised in scan(path.read_text(), str(path.relative_to(ROOT)))]


def rows() -> list[Row]:
    table = []
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 4, line
            table.append(
                Row(
                    code=cells[0].strip("`"),
                    text=cells[1],
                    next_step=cells[2],
                    tests=tuple(re.findall(r"`([^`]+)`", cells[3])),
                )
            )
    return table


ROWS = rows()


def test_the_scan_finds_what_it_should() -> None:
    code = 'raise ConfigError("a-b", "x", next_step="y")\nraise errors.DataError(code, "x", next_step="y")\nfoo("z")\n'
    assert scan(code, "f.py") == [Raised(where="f.py:1", code="a-b"), Raised(where="f.py:2", code=None)]
    assert len(sources()) > 20


def test_every_code_is_a_literal() -> None:
    assert [raised.where for raised in sources() if raised.code is None] == []


def test_every_code_of_the_sources_has_a_row() -> None:
    known = {row.code for row in ROWS}
    missing = sorted({f"{r.code}  ({r.where})" for r in sources() if r.code and r.code not in known})
    assert missing == [], "add rows to docs/errors.md:\n" + "\n".join(missing)


def test_every_row_has_a_code_in_the_sources() -> None:
    raised = {r.code for r in sources()}
    assert sorted(row.code for row in ROWS if row.code not in raised) == []


def test_codes_are_kebab_case_unique_and_sorted() -> None:
    codes = [row.code for row in ROWS]
    assert codes == sorted(set(codes))
    for code in codes:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", code)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_every_row_says_what_to_do_and_names_a_test_that_exists(row: Row) -> None:
    assert row.text
    assert row.next_step
    assert row.tests, "name at least one test as `tests/file.py::test_function`"
    for test in row.tests:
        file, _, function = test.partition("::")
        source = ROOT / file
        assert source.is_file(), file
        names = {
            node.name
            for node in ast.walk(ast.parse(source.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert function in names, test
