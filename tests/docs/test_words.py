"""What the pages may not say, and what they must say beside a number."""

import re
from pathlib import Path

import pytest

from wardround_common.audit.cli import EXIT_CODES
from wardround_common.wire.limits import HANDSHAKE_S, KEEPALIVE_S
from wardround_server.config import ServerConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OURS = [page for page in PAGES if page.name != "transcript.md"]
WRITTEN = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in OURS}
CLAIMS = r"\b(compliant|complies|certified|HIPAA-ready|GDPR-ready|fully anonymous|unhackable)\b"
SYSTEMS = ("NVIDIA FLARE 2.9.0", "Flower 1.42.0", "OpenFL 1.9", "FATE-LLM 2.2.0", "Fed-BioMed 6.4.1", "wardround 0.1.0")
UNPROTECTED = ["Poisoning", "Facts that many patients share", "PHI in what the model writes", "Timing and size"]
DENIALS = r"(?:does not|nor does it|never|no verdict|not) [\w ,]*$|make(?:s)? (?:anyone|anybody) $"


@pytest.mark.parametrize("page", WRITTEN)
def test_nothing_is_called_compliant_certified_or_guaranteed_safe(page: str) -> None:
    text = " ".join(WRITTEN[page].split())
    for match in re.finditer(CLAIMS, text, re.I):
        before = text[max(0, match.start() - 60) : match.start()]
        assert re.search(DENIALS, before), f"{page}: …{before}{match[0]}"


@pytest.mark.parametrize("page", [name for name, text in WRITTEN.items() if re.search(r"ε (?:=|≤) \d", text)])
def test_a_page_with_a_number_for_epsilon_names_unit_and_adjacency(page: str) -> None:
    text = WRITTEN[page]
    assert re.search(r"patient|record|unit", text)
    assert re.search(r"add-or-remove-one|adding or removing one|[Rr]ényi|RDP|per record|per patient|lifetime", text)


def test_the_threat_model_says_what_is_not_protected() -> None:
    text = (DOCS / "threat-model.md").read_text(encoding="utf-8")
    rest = text.split("## What is not protected")[1]
    assert re.findall(r"^### (.*)$", rest, re.M)[:4] == UNPROTECTED


def test_the_comparison_names_every_version_that_was_read() -> None:
    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    header = next(line for line in text.splitlines() if line.startswith("| | NVIDIA"))
    for system in SYSTEMS:
        assert system in header
        assert system.rsplit(" ", 1)[0] in text.split("## Take another one")[1].split("## Feature")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == header.count("|")]
    assert len(rows) > 15
    for row in rows[1:]:
        assert all(cell.strip() for cell in row.split("|")[1:-1]), row


def test_the_reviewers_guide_has_every_exit_code_of_verify() -> None:
    text = (DOCS / "guides" / "reviewer.md").read_text(encoding="utf-8")
    table = text.split("| exit code |")[1].split("\n\n")[0]
    told = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")}
    sums = {sum(code for bit, code in enumerate(EXIT_CODES) if mask >> bit & 1) for mask in range(16)}
    assert told == sums | {1, 2}


def test_the_firewall_page_has_the_constants_of_the_code() -> None:
    text = (DOCS / "guides" / "firewall.md").read_text(encoding="utf-8")
    fields = ServerConfig.model_fields
    assert f"every {KEEPALIVE_S:g} s" in text
    assert f"| {fields['certificate_days'].default} days (`certificate_days`) |" in text
    assert f"| {fields['invite_hours'].default} hours, once |" in text
    assert HANDSHAKE_S > 0


def test_the_firewall_pages_examples_are_computed() -> None:
    text = (DOCS / "guides" / "firewall.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| ([\d,]+) \| ([\d.]+) MB \| ([\d.]+) (MB|GB) \| ([\d.]+) s \|$", text, re.M)
    assert len(rows) == 4
    for parameters, one, twenty, unit, seconds in rows:
        size = 4 * int(parameters.replace(",", ""))
        assert float(one) == pytest.approx(size / 1e6, rel=0.03)
        assert float(twenty) == pytest.approx(20 * size / {"MB": 1e6, "GB": 1e9}[unit], rel=0.03)
        assert float(seconds) == pytest.approx(size * 8 / 10e6, rel=0.12)


def test_nobody_is_spoken_of_but_wardround() -> None:
    for page, text in WRITTEN.items():
        assert not re.search(r"/work/|/tmp/|localhost:\d|pypi\.org/simple", text), page
