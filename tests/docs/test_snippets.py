"""Commands, keys, files and Python in the pages are real: each is looked up in the code, none is run here.

What is run, line by line, are the guides: test_walk.py. The site's own check of links is in test_site.py.
"""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer
import yaml
from markdown.extensions.toc import slugify
from pydantic import BaseModel

from wardround_client.config import ClientConfig
from wardround_common.cli import ROLES, load_role
from wardround_common.config import models_in
from wardround_common.policy import Policy
from wardround_common.study_file import StudyFile
from wardround_server.config import ServerConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TREE = {role: typer.main.get_command(load_role(role)) for role in ROLES}
FILES = {"client.toml": ClientConfig, "policy.yaml": Policy, "server.toml": ServerConfig, "study.yaml": StudyFile}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: Path
    language: str
    title: str
    text: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for match in re.finditer(
            r'^( *)```(\w*)(?: title="([^"]*)")?\n(.*?)^\1```$', page.read_text(encoding="utf-8"), re.M | re.S
        ):
            yield Block(page=page, language=match[2], title=match[3] or "", text=match[4])


BLOCKS = list(blocks())


def lines_of_commands() -> Iterator[tuple[Path, str]]:
    """Yield (page, words after `wardround`) of every command in a console block, a plain block or between backticks."""
    for block in BLOCKS:
        if block.language in ("console", ""):
            for line in block.text.splitlines():
                yield from ((block.page, found) for found in _commands_in(line))
    for page in PAGES:
        outside = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for code in re.findall(r"`(wardround [^`]+)`", outside):
            yield page, code.removeprefix("wardround ")


def _commands_in(line: str) -> Iterator[str]:
    line = re.sub(r"\s+#\s.*$", "", line)  # a remark after the command
    for part in re.split(r"&&|\|(?![^(]*\))|>|;", line):
        if match := re.match(r"^(?:\S*\$ +)?\s*wardround +(.*)$", part):
            yield match[1].strip()


COMMANDS = sorted({(str(page.relative_to(ROOT)), line) for page, line in lines_of_commands()})


def problem(line: str) -> str | None:
    """Return what is wrong with the words after `wardround`, None if the command exists with these options."""
    words = shlex.split(line.replace("…", "x").replace("'", "\\'") if line.count("'") % 2 else line.replace("…", "x"))
    if words[0] in ("ROLE", "--help"):
        return None
    roles, words = words[0].split("|"), words[1:]
    if not set(roles) <= set(TREE):
        return f"no role {'|'.join(roles)}"
    found = [_problem_of(TREE[role], list(words)) for role in roles]
    return next((what for what in found if what), None)


def _problem_of(command: click.Command, words: list[str]) -> str | None:
    while words and isinstance(command, click.Group):
        choices = [word for word in re.split(r"[|,/]", words[0]) if word]
        if choices[0].isupper():
            return None  # `wardround client COMMAND`: any
        unknown = [word for word in choices if word not in command.commands]
        if unknown:
            return f"no command {unknown[0]}"
        command, words = command.commands[choices[0]], words[1:]
        while len(words) > 1 and words[0] == "|":  # `pause | resume | kill`
            words = words[2:]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
    return f"no option {unknown[0]}" if unknown else None


def test_the_check_finds_what_it_should() -> None:
    assert len(COMMANDS) > 100
    assert problem("server start --home server") is None
    assert problem("client pause | resume | kill | leave STUDY") is None
    assert problem("server strat --home server") == "no command strat"
    assert problem("client policy keygenn x") == "no command keygenn"
    assert problem("server start --homme server") == "no option --homme"
    assert problem("sever start") == "no role sever"
    assert list(_commands_in("hospital$ wardround client check x --json | python -c 'y'   # remark")) == [
        "client check x --json"
    ]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[-60:])
def test_every_command_exists_with_its_options(page: str, line: str) -> None:
    assert problem(line) is None, f"{page}: wardround {line}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in models_in(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.title], ids=lambda b: f"{b.page.stem}-{b.title}")
def test_every_key_of_a_titled_block_exists(block: Block) -> None:
    import tomllib

    model = FILES[Path(block.title).name]
    read = tomllib.loads(block.text) if block.title.endswith(".toml") else yaml.safe_load(block.text)
    known = {re.sub(r"\.\*", "", key) for key in _keys(model)}

    def unknown(found: object, prefix: str) -> Iterator[str]:
        if isinstance(found, dict):
            for name, value in found.items():
                here = f"{prefix}{name}"
                tables = prefix.removesuffix(".") in known and not any(k.startswith(prefix) for k in known)
                if tables:
                    continue  # names that a person chooses
                if here not in known and prefix.split(".")[0] != "datasets":
                    yield here
                yield from unknown(value, f"{here}.")

    assert list(unknown(read, "")) == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.page.stem)
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wardround"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_the_price_in_the_python_page_is_what_it_prints() -> None:
    (block,) = [b for b in BLOCKS if b.page.match("api/index.md") and "price(" in b.text]
    scope: dict[str, object] = {}
    exec(block.text, scope)
    page = (ROOT / "docs" / "how-epsilon-is-earned.md").read_text(encoding="utf-8")
    epsilon = scope["price"]([scope["record"]] * 4, delta=1e-5).epsilon  # type: ignore[operator]
    assert f"ε = {epsilon:.3f}" in page


TREES = "tests|docs|benchmarks|common|client|server|demo"
AT_A_HOME = (
    *("client/keys", "client/state", "client/client.toml", "client/policy.yaml", "client/data", "client/studies"),
    *("server/keys", "server/server.toml", "server/audit"),
)
FILES_NAMED = sorted(
    {
        (str(page.relative_to(ROOT)), found)
        for page in PAGES
        if page.name != "transcript.md"
        for found in re.findall(rf"`((?:{TREES})/[\w./-]+)(?:::\w+)?`", page.read_text())
    }
)


@pytest.mark.parametrize(("page", "file"), FILES_NAMED, ids=lambda value: value[-60:])
def test_every_file_that_is_named_exists(page: str, file: str) -> None:
    example = re.search(r"NAME|benchmarks/out", file)
    assert file.startswith(AT_A_HOME) or example or (ROOT / file).exists(), f"{page} names {file}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site makes them."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {slugify(re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading), "-") for heading in headings}


ANCHORED = sorted(
    {
        (page.relative_to(ROOT).as_posix(), target, anchor)
        for page in PAGES
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize(("page", "target", "anchor"), ANCHORED)
def test_every_anchor_exists(page: str, target: str, anchor: str) -> None:
    to = (ROOT / page).parent / target if target else ROOT / page
    assert anchor in anchors(to) or to.parent.name == "api", f"{page} links to {target}#{anchor}"
