"""Commands, options, files and errors that the pages about running wardround name exist."""

import re
from pathlib import Path

import click
import pytest
import typer

from wardround_common.cli import ROLES, load_role

ROOT = Path(__file__).parents[2]
NAMES = ("docs/deploying.md", "docs/backup.md", "docs/upgrading.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [ROOT / name for name in NAMES]


def commands(text: str) -> list[str]:
    """Return every `wardround ROLE …` of a text, up to where the shell or the sentence goes on."""
    return re.findall(rf"\bwardround ((?:{'|'.join(ROLES)}) [^`\n;#|&']*)", " ".join(re.split(r"\n(?![#$])", text)))


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that `words` name, and what follows its name."""
    command: click.Command = typer.main.get_command(load_role(words[0]))
    rest = words[1:]
    while rest and isinstance(command, click.Group | typer.core.TyperGroup):
        assert rest[0] in command.commands, f"wardround {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    found = commands(page.read_text())
    for line in found:
        words = line.split()
        command, rest = resolve(words)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for option in (word for word in rest if word.startswith("--")):
            assert option in known, f"wardround {line}"
    assert page.name in ("CONTRIBUTING.md", "upgrading.md") or len(found) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:deploy|docs|tests|server|client|common)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_error_codes_exist(page: Path) -> None:
    known = set(re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    starts = ("home-", "backup-", "ledger-", "audit-log-", "audit-locked", "server-database", "vault-")
    for code in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", page.read_text()):
        if code.startswith(starts):
            assert code in known, code
