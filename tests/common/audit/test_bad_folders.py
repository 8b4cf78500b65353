"""Every reading command against every damaged folder and wrong key: a clear answer, never a traceback."""

import json
import os
import shutil

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.big_log import all_answer, make_big_log
from typer.testing import CliRunner

from wardround_common.audit import events
from wardround_common.audit.cli import audit_app
from wardround_common.audit.note import log_key_of
from wardround_common.errors import WardroundError

COMMANDS = {
    "verify": ("verify", "DIR", "TRUST"),
    "show": ("show", "DIR", "IDENTITY"),
    "search": ("search", "DIR", "round:1", "TRUST", "IDENTITY"),
    "epsilon": ("epsilon", "DIR", "TRUST", "IDENTITY"),
    "report": ("report", "DIR", "TRUST", "IDENTITY", "--out", "OUT"),
    "export": ("export", "DIR", "TRUST", "IDENTITY", "--format", "csv", "--out", "OUT"),
    "receipt": ("receipt", "DIR", "12", "TRUST", "--out", "OUT"),
    "bundle": ("bundle", "DIR", "OUT", "TRUST"),
    "diff": ("diff", "DIR", "DIR", "TRUST"),
    "rewrap": ("rewrap", "DIR", "TRUST", "IDENTITY", "--to", "RECIPIENT", "--out", "OUT"),
    "shred": ("shred", "DIR", "TRUST", "--segment", "0" * 16, "--reason", "retention-ended", "--yes", "--out", "OUT"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_big_log(tmp_path_factory.mktemp("whole"), hospitals=2, rounds=2, drop=all_answer)


@pytest.fixture
def big(whole, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(whole.home, tmp_path / "copy")
    return type(whole)(home=tmp_path / "copy", cast=whole.cast, study=whole.study, reviewer=whole.reviewer)


def run(big, name, tmp_path, *more):
    """Run one command; return (exit code, error code or None). Anything but our own errors fails the test."""
    places = {
        "DIR": [str(big.folder)],
        "TRUST": ["--trust", str(big.trust)],
        "IDENTITY": ["--identity", str(big.identity)],
        "OUT": [str(tmp_path / f"{name}-out")],
        "RECIPIENT": [str(big.reviewer.to_public())],
    }
    words = [part for word in COMMANDS[name] for part in places.get(word, [word])]
    result = CliRunner().invoke(audit_app, [*words, *more])
    if result.exception is None or isinstance(result.exception, SystemExit):
        return result.exit_code, None
    assert isinstance(result.exception, WardroundError), (name, result.exc_info)
    assert result.exception.next_step
    return result.exception.exit_code, result.exception.code


def empty(big):
    shutil.rmtree(big.folder)
    big.folder.mkdir()


def not_a_log(big):
    shutil.rmtree(big.folder)
    big.folder.mkdir()
    (big.folder / "holiday.jpg").write_bytes(b"\xff\xd8")


def a_file(big):
    shutil.rmtree(big.folder)
    big.folder.write_text("not a folder")


def missing(big):
    shutil.rmtree(big.folder)


def truncated_bundles(big):
    for path in (big.folder / "log/tile/entries").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_tiles(big):
    for path in (big.folder / "log/tile/0").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-7])


def empty_checkpoint(big):
    (big.folder / "log/checkpoint").write_bytes(b"")


def binary_checkpoint(big):
    (big.folder / "log/checkpoint").write_bytes(bytes(range(256)))


def fifo_checkpoint(big):
    (big.folder / "log/checkpoint").unlink()
    os.mkfifo(big.folder / "log/checkpoint")


def absurd_size(big):
    path = big.folder / "log/checkpoint"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], "999999999999", *lines[2:]]))


DAMAGE = (
    empty,
    not_a_log,
    a_file,
    missing,
    truncated_bundles,
    truncated_tiles,
    empty_checkpoint,
    binary_checkpoint,
    fifo_checkpoint,
    absurd_size,
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_gets_a_clear_answer_from_every_command(big, tmp_path, damage):
    damage(big)
    outcomes = {name: run(big, name, tmp_path) for name in COMMANDS}  # each ends well or with an error of ours
    assert outcomes["verify"][0] & 16, outcomes
    assert outcomes["bundle"][1] is not None  # what does not verify is not handed on
    if damage in (empty, not_a_log, a_file, missing):
        assert None not in {error for _, error in outcomes.values()}, outcomes


def test_a_checkpoint_by_another_key(big, tmp_path):
    text = big.trust.read_text()
    other = str(log_key_of("operator.wardround", Ed25519PrivateKey.generate().public_key()))
    big.trust.write_text(text.replace(big.study.server.log, other))
    for name in ("verify", "receipt", "bundle", "diff"):
        assert run(big, name, tmp_path)[1] == "note-not-signed", name
    assert run(big, "report", tmp_path)[1] == "note-not-signed"
    assert run(big, "export", tmp_path)[1] == "note-not-signed"


@pytest.mark.parametrize("name", ["show", "search", "epsilon", "report", "export", "rewrap"])
def test_a_wrong_or_missing_identity(big, tmp_path, name):
    big.identity.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    code, error = run(big, name, tmp_path)
    expected = {"show": "audit-nothing-readable", "rewrap": "segment-none-opened"}
    assert error == expected.get(name) if name in expected else code == 0  # sealed rows are shown as sealed
    big.identity.write_text("nothing here\n")
    assert run(big, name, tmp_path)[1] == "audit-identity-malformed"
    big.identity.unlink()
    assert run(big, name, tmp_path)[1] == "audit-identity-missing"


def test_a_wrong_identity_is_said_in_the_report_and_costs_no_epsilon(big, tmp_path):
    big.identity.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    assert run(big, "report", tmp_path) == (0, None)
    html = (tmp_path / "report-out").read_text()
    assert "cannot be read with your key" in html


def test_a_missing_wrap_file(big, tmp_path):
    for path in (big.folder / "keys").iterdir():
        path.unlink()
    code, error = run(big, "verify", tmp_path)
    assert (code, error) == (16, "log-key-file-missing")
    assert run(big, "show", tmp_path)[1] == "audit-nothing-readable"
    assert run(big, "report", tmp_path) == (0, None)
    html = (tmp_path / "report-out").read_text()
    assert 'class="answer no"' in html
    assert "nobody can read that segment" in html


def test_entries_of_a_newer_schema_are_shown_as_unknown_everywhere(big, tmp_path, monkeypatch):
    """The reader knows one kind less than the writer did."""
    fewer = frozenset(events.KINDS - {"client.invited"})
    monkeypatch.setattr(events, "KINDS", fewer)
    assert run(big, "verify", tmp_path) == (0, None)
    for name in ("search", "show", "epsilon", "report", "export"):
        assert run(big, name, tmp_path)[0] == 0, name
    words = ["search", str(big.folder), "kind:unknown", "--trust", str(big.trust), "--identity", str(big.identity)]
    found = json.loads(CliRunner().invoke(audit_app, [*words, "--json"]).stdout)["entries"]
    assert len(found) == 2
    assert {row["facts"]["kind"] for row in found} == {"client.invited"}
    assert all("does not know" in row["problem"] for row in found)
    assert "client.invited" in (tmp_path / "export-out").read_text()
    assert "entry of kind unknown" in (tmp_path / "report-out").read_text()
