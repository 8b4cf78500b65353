"""docs/spec/secagg.md names every document, field, frame, label and error that the code has."""

import ast
import re
from pathlib import Path

import pytest

import wardround_common.secagg as package
from wardround_common.documents import Document
from wardround_common.secagg import derive, documents, errors, frames, rules

ROOT = Path(__file__).parents[3]
SPEC = (ROOT / "docs" / "spec" / "secagg.md").read_text()
SOURCES = sorted(Path(package.__file__).parent.glob("*.py"))
HASHED = (documents.RoundContext, documents.PairContext)
SIGNED = documents.Signed.__args__


@pytest.mark.parametrize("model", [*SIGNED, *HASHED], ids=lambda m: m.__name__)
def test_every_field_of_every_document(model: type[Document]) -> None:
    name = model.model_fields["format"].default.split("/")[1]
    if model in HASHED:
        text = SPEC.split("Not signed, only hashed:")[1].split("\n\n")[0]
    else:
        (text,) = [line for line in SPEC.splitlines() if line.startswith(f"| `{model.__name__}` (`{name}`)")]
    assert f"`{name}`" in text
    for field in model.model_fields:
        assert field == "format" or f"`{field}`" in text, field


def test_formats_are_distinct_so_no_digest_or_signature_serves_two_purposes() -> None:
    found = [m.model_fields["format"].default for m in (*SIGNED, *HASHED, documents.Introduction, derive.RoundName)]
    assert len(set(found)) == len(found)
    assert all(form in SPEC or form.split("/")[1] in SPEC for form in found)


def labels() -> dict[str, set[str]]:
    """Return the label of every key derivation in the sources: {label: files}."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", ""))
            if isinstance(node, ast.Call) and name == "derive" and len(node.args) == 3:
                label = node.args[1]
                text = label.value if isinstance(label, ast.Constant) else label.values[0].value  # f"seed-{peer}"
                found.setdefault(text, set()).add(path.name)
    return found


def test_every_label_is_in_the_page_and_none_is_the_start_of_another() -> None:
    found = labels()
    assert found.keys() == {"mask-key", "seed-", "chain", "step", "box", "token", "for", "self", "pair"}
    for label in found:
        assert f"`{label}`" in SPEC, label
        assert not any(other != label and other.startswith(label) for other in found)


@pytest.mark.parametrize("magic", ["wr-keys", "wr-parc", "wr-kit!", "wr-open", "wr-shar"])
def test_every_frame(magic: str) -> None:
    assert f"`{magic}`" in SPEC
    assert magic in Path(frames.__file__).read_text()


def test_sizes() -> None:
    assert (frames.WRAPPED, frames.BOX) == (1168, 80)
    assert "wrapped seed (1168)" in SPEC
    assert "then the box (80)" in SPEC
    assert rules.SENTINELS == 4
    assert "four elements 1, the parameters in order, four elements 1" in SPEC


def test_every_error_has_one_line_and_a_next_step() -> None:
    made = [errors.frame_invalid("x"), errors.keys_invalid("x"), errors.round_pinned("x"), errors.shares_inconsistent()]
    for error in made:
        assert "\n" not in str(error)
        assert error.next_step


def test_every_attack_of_the_page_has_a_row_with_its_result() -> None:
    table = SPEC.split("## Attacks and what happens")[1].split("## ")[0]
    rows = re.findall(r"^\| (?!attack|---)(.*?) \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert len(rows) == 16
    assert all(result and by for _, result, by in rows)


def test_nothing_here_needs_torch_or_flwr() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(
                name.split(".")[0] in ("torch", "flwr", "wardround_server", "wardround_client") for name in names
            )
