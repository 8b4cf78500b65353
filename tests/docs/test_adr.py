"""Every decision has all sections, names what it costs, and is in the index."""

import re
from pathlib import Path

import pytest

ADR = Path(__file__).parents[2] / "docs" / "adr"
DECISIONS = sorted(path for path in ADR.glob("[0-9]*.md") if path.name != "0000-template.md")
SECTIONS = ["Context", "Decision", "Consequences", "Runner-up"]


def test_numbers_run_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("path", [ADR / "0000-template.md", *DECISIONS], ids=lambda p: p.name)
def test_sections(path: Path) -> None:
    text = path.read_text()
    assert re.match(rf"# {path.name[:4]}: \S", text)
    assert re.search(r"^Status: \S", text, re.MULTILINE)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    for body in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]:
        assert len(body.split()) >= 5
    assert "- Negative: " in text
    assert len(text.splitlines()) <= 60, "half a page"


def test_the_index_has_every_decision_with_its_title() -> None:
    index = (ADR / "README.md").read_text()
    for path in DECISIONS:
        title = path.read_text().splitlines()[0].split(": ", 1)[1]
        assert f"| [{path.name[:4]}]({path.name}) | {title} |" in index


def test_links_between_pages_lead_somewhere() -> None:
    for page in ADR.parent.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
