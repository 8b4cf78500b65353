"""Every command, field and test that docs/requirements-map.md names exists, and it promises no verdict."""

import ast
import re
from pathlib import Path

import pytest
import typer

from wardround_common.audit.events import Event
from wardround_common.audit.framing import SegmentOpen, SegmentRewrap, SegmentShred
from wardround_common.cli import ROLES, load_role
from wardround_common.study import Study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "requirements-map.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| asks for", "| ---"))
]
PUBLIC = {"segment.open": SegmentOpen, "segment.rewrap": SegmentRewrap, "segment.shred": SegmentShred}
FIELDS = {cls.model_fields["kind"].default: cls for cls in Event.__args__} | PUBLIC


def named() -> list[str]:
    return sorted(set(re.findall(r"`([^`]+)`", TEXT)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][2:40])
def test_a_row_names_its_evidence_and_a_test_that_exists(row: list[str]) -> None:
    assert len(row) == 3
    tests = re.findall(r"`(tests/[^`]+)`", row[2])
    assert tests
    for test in tests:
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in names, test


@pytest.mark.parametrize("command", [name for name in named() if name.startswith("wardround ")])
def test_commands_exist(command: str) -> None:
    _, role, name = command.split()
    assert role in ROLES
    assert name in typer.main.get_command(load_role(role)).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "field", [name for name in named() if re.fullmatch(r"(?!study)[a-z]+\.[a-z]+(\.[a-z_]+)?", name)]
)
def test_recorded_fields_exist(field: str) -> None:
    kind, _, name = field.rpartition(".") if field not in FIELDS else (field, "", "")
    assert kind in FIELDS, field
    assert not name or name in FIELDS[kind].model_fields


@pytest.mark.parametrize("field", [name for name in named() if name.startswith("study.")])
def test_fields_of_the_study_exist(field: str) -> None:
    parts = field.split(".")
    if ".".join(parts[:2]) in FIELDS:
        assert parts[2] in FIELDS[".".join(parts[:2])].model_fields
    else:
        assert parts[1] in Study.model_fields


def test_every_text_of_the_list_is_there() -> None:
    for text in ("164.312(b)", "164.316", "5(2)", "30(1)", "32(1)", "12(1)", "19(1)", "26(6)", "11.10(e)", "800-226"):
        assert text in TEXT


def test_it_supplies_evidence_and_promises_nothing() -> None:
    assert "supplies evidence for" in TEXT
    assert not {"compliant", "compliance", "complies", "certified"} & set(re.findall(r"[a-z-]+", TEXT.lower()))
