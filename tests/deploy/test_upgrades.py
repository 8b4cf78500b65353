"""docs/upgrading.md: the table of versions is what the sources say, and a newer home is refused by every command."""

import json
import re
from pathlib import Path

import pytest
from peers.federation import ok, wardround

from wardround_client import ledger_store
from wardround_common import backup, homeformat
from wardround_common.homeformat import HOME_FORMAT, STAMP
from wardround_server import database

PAGE = (Path(__file__).parents[2] / "docs" / "upgrading.md").read_text()


def row(file: str) -> str:
    (found,) = re.findall(rf"^\| {re.escape(file)} \|(.*)$", PAGE, re.MULTILINE)
    return found


def test_the_page_names_the_versions_of_the_sources() -> None:
    assert f"`wardround/home/{HOME_FORMAT}`" in row("the home as a whole")
    assert f"`user_version` {ledger_store._VERSION}," in row("`state/ledger.db`")
    assert set(ledger_store._UPGRADES) == set(range(1, ledger_store._VERSION)), "every older ledger migrates"
    assert f"`user_version` {database.SCHEMA_VERSION} " in row("`state/server.db`")
    assert f"`{backup.Head.model_fields['format'].default}`" in row("backups")


@pytest.fixture
def server(tmp_path: Path) -> Path:
    recipient = ok("audit", "keygen", tmp_path / "reviewer.key")["recipient"]
    home = tmp_path / "server"
    ok(
        *("server", "init", "--home", home, "--name", "operator", "--address", "127.0.0.1:8443"),
        *("--reviewer", f"board={recipient}"),
    )
    return home


@pytest.mark.parametrize(
    "command",
    [("status",), ("start",), ("invite", "north", "--out", "x"), ("backup", "--to", "age1", "--out", "x")],
    ids=lambda words: words[0],
)
def test_a_newer_servers_home_is_refused_whatever_the_command(server: Path, command: tuple[str, ...]) -> None:
    text = json.dumps({"format": f"wardround/home/{HOME_FORMAT + 1}", "role": "server", "version": "9.1.0"})
    (server / STAMP).write_text(text)
    outcome = wardround("server", *command, "--home", server)
    assert outcome.code == 1
    assert "last used by wardround 9.1.0" in outcome.err
    assert "next: install that version again" in outcome.err
    assert (server / STAMP).read_text() == text
    report = {f["name"]: f for f in wardround("server", "doctor", "--home", server, "--json").json["findings"]}
    assert report["configuration"]["says"] == "error home-newer"


@pytest.mark.parametrize("command", ["status", "doctor", "start", "pause", "kill"])
def test_a_newer_hospitals_home_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / STAMP).write_text('{"format":"wardround/home/99"}')
    before = sorted(tmp_path.rglob("*"))
    outcome = wardround("client", command, "--home", tmp_path)
    assert outcome.code == 1
    assert "home-newer" in outcome.out or "home format 99" in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_home_from_before_the_stamp_is_used_and_a_restored_one_keeps_its_stamp(server: Path, tmp_path: Path) -> None:
    (server / STAMP).unlink()
    ok("server", "status", "--home", server)
    key = tmp_path / "backup.key"
    recipient = ok("audit", "keygen", key)["recipient"]
    homeformat.stamp(server, "server")
    ok("server", "backup", "--home", server, "--to", recipient, "--out", tmp_path / "b")
    ok("server", "restore", tmp_path / "b", "--identity", key, "--home", tmp_path / "new")
    assert (tmp_path / "new" / STAMP).read_bytes() == (server / STAMP).read_bytes()
    ok("server", "status", "--home", tmp_path / "new")
