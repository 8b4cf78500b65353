"""Receipts, comparison of two copies, bundles: through the commands, and attacked."""

import errno
import json
import shutil
import subprocess
import sys

import pyrage
import pytest
from peers.big_log import all_answer, make_big_log
from typer.testing import CliRunner

from wardround_common.audit.cli import audit_app
from wardround_common.audit.events import ClientInvited, ServerStopped
from wardround_common.errors import WardroundError


@pytest.fixture
def run(big, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments, error=None):
        result = CliRunner().invoke(audit_app, [str(argument) for argument in arguments])
        if error is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, WardroundError), result
            assert result.exception.code == error
            assert result.exception.next_step
        return result.stdout

    return run


def test_a_receipt_proves_its_entry_to_somebody_without_the_log(run, big, tmp_path):
    run("receipt", big.folder, 20, "--trust", big.trust, "--out", "e20")
    said = json.loads(run("check", "e20", "--trust", big.trust, "--json"))
    assert (said["index"], said["event"]) == (20, None)
    assert not (tmp_path / "e20.key").exists()
    for suffix, error in ((".entry", "log-proof-invalid"), (".tlog-proof", None)):
        path = tmp_path / f"e20{suffix}"
        whole = path.read_bytes()
        path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        with pytest.raises(AssertionError):  # whatever was changed, the check ends with an error
            run("check", "e20", "--trust", big.trust)
        if error:
            run("check", "e20", "--trust", big.trust, error=error)
        path.write_bytes(whole)
    run("check", "e20", "--trust", big.trust)


def test_a_disclosing_receipt_opens_one_entry_and_no_other(run, big, tmp_path):
    run("receipt", big.folder, 21, "--trust", big.trust, "--out", "e21", "--disclose", big.identity)
    said = json.loads(run("check", "e21", "--trust", big.trust, "--json"))
    assert said["event"]["kind"] in {"round.started", "dp.spent", "update.received"}
    run("receipt", big.folder, 22, "--trust", big.trust, "--out", "e22")
    shutil.copy(tmp_path / "e21.key", tmp_path / "e22.key")
    run("check", "e22", "--trust", big.trust, error="log-entry-unreadable")
    (tmp_path / "e22.key").write_text("no key\n")
    run("check", "e22", "--trust", big.trust, error="receipt-key-malformed")


def test_receipts_that_cannot_be_made_or_read(run, big, tmp_path):
    run("receipt", big.folder, 10**6, "--trust", big.trust, "--out", "x", error="receipt-no-such-entry")
    (tmp_path / "other.key").write_text(f"{pyrage.x25519.Identity.generate()}\n")
    options = ("--trust", big.trust, "--out", "x", "--disclose", tmp_path / "other.key")
    run("receipt", big.folder, 20, *options, error="receipt-sealed")
    run("check", "missing", "--trust", big.trust, error="receipt-unreadable")
    run("receipt", big.folder, 20, "--trust", big.trust, "--out", "x")
    run("receipt", big.folder, 20, "--trust", big.trust, "--out", "x", error="file-exists")
    (tmp_path / "x.tlog-proof").write_text("c2sp.org/tlog-proof@v1\nindex x\n")
    run("check", "x", "--trust", big.trust, error="tlog-proof-malformed")


@pytest.fixture
def pair(tmp_path):
    """A log, and a copy that was made earlier."""
    big = make_big_log(tmp_path / "b", hospitals=2, rounds=2, drop=all_answer)
    shutil.copytree(big.home, tmp_path / "a")
    return big, tmp_path / "a" / "audit"


def test_diff_of_equal_and_of_grown_copies(run, pair):
    big, old = pair
    trust = ("--trust", big.trust)
    assert "same:" in run("diff", old, big.folder, *trust)
    with big.open() as log:
        big.append(log, ServerStopped())
    found = json.loads(run("diff", old, big.folder, *trust, "--json"))
    assert found["relation"] == "B continues A"
    assert found["first"] == found["sizes"][0] < found["sizes"][1]
    assert len(found["key_files_only_in_b"]) == 1  # a start opens a segment
    assert json.loads(run("diff", big.folder, old, *trust, "--json"))["relation"] == "A continues B"


def test_diff_finds_the_entry_where_two_histories_part(run, pair):
    here, there = pair[0].folder, pair[1]
    big, sizes = pair[0], []
    for folder, site in ((here, "north"), (there, "south")):
        big.home = folder.parent
        with big.open() as log:
            sizes.append(log.size)
            big.append(log, ClientInvited(site=site))
    run("diff", there, here, "--trust", big.trust, error="log-forked")
    result = CliRunner().invoke(audit_app, ["diff", str(there), str(here), "--trust", str(big.trust), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["relation"], found["error"]["code"]) == (1, "two histories", "log-forked")
    assert found["first"] == sizes[0]  # the segment that the start opened is another one already


def test_diff_with_a_copy_that_another_key_signed(run, pair, tmp_path):
    big, old = pair
    stranger = make_big_log(tmp_path / "stranger", hospitals=2, rounds=1, drop=all_answer)
    run("diff", old, stranger.folder, "--trust", big.trust, error="note-not-signed")


def test_a_bundle_verifies_where_there_is_no_network(run, big, tmp_path):
    for site in big.sites[:3]:
        (tmp_path / f"{site}.head").write_text(big.head(site))
    heads = [part for site in big.sites[:3] for part in ("--head", f"{site}.head")]
    said = json.loads(run("bundle", big.folder, "bundle", "--trust", big.trust, *heads, "--json"))
    bundle = tmp_path / "bundle"
    assert said["files"] == sum(path.is_file() for path in bundle.rglob("*"))
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=bundle, check=False).returncode == 0
    text = (bundle / "README.txt").read_text()
    (line,) = [line for line in text.splitlines() if "audit verify" in line]
    command = line.partition("wardround audit ")[2].split()
    code = (
        "import socket, sys\n"
        "def closed(*args, **options): raise OSError('no network here')\n"
        "socket.socket.connect = socket.socket.bind = socket.getaddrinfo = closed\n"
        "from wardround_common.audit.cli import audit_app\n"
        "audit_app(args=sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--json"], cwd=bundle, capture_output=True, check=False
    )
    assert done.returncode == 0, done
    statuses = {name: answer["status"] for name, answer in json.loads(done.stdout)["answers"].items()}
    assert statuses == {"intact": "yes", "append_only": "unknown", "witnessed": "yes", "complete": "yes"}
    assert b"AGE-SECRET" not in b"".join(path.read_bytes() for path in bundle.rglob("*") if path.is_file())


def test_the_bundles_policy_names_log_witnesses_and_quorum(run, big, tmp_path):
    run("bundle", big.folder, "bundle", "--trust", big.trust)
    lines = (tmp_path / "bundle" / "policy.txt").read_text().splitlines()
    assert lines[0].startswith("log operator.wardround+")
    assert [line.split()[:2] for line in lines[1:-2]] == [["witness", site] for site in big.sites]
    assert lines[-2:] == [f"group hospitals 3 {' '.join(big.sites)}", "quorum hospitals"]


def test_what_does_not_verify_is_not_bundled(run, pair, tmp_path):
    big, old = pair
    tile = next(path for path in (old / "log/tile/entries").rglob("*") if path.is_file())
    whole = tile.read_bytes()
    tile.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    run("bundle", old, "bundle", "--trust", big.trust, error="log-file-altered")
    assert not (tmp_path / "bundle").exists()
    (tmp_path / "there").mkdir()
    run("bundle", big.folder, "there", "--trust", big.trust, error="file-exists")


def test_a_bundle_on_a_full_disk(run, big, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    run("bundle", big.folder, "bundle", "--trust", big.trust, error="bundle-not-written")


def test_search_on_the_command_line(run, big):
    keys = ("--trust", big.trust, "--identity", big.identity, "--json")
    found = json.loads(run("search", big.folder, "kind:client.dropped", "site:hospital-02", *keys))["entries"]
    assert [(row["round"], row["facts"]["reason"]) for row in found] == [(11, "late"), (12, "late")]
    assert [row["index"] for row in json.loads(run("search", big.folder, "17", *keys))["entries"]] == [17]
    in_round = json.loads(run("search", big.folder, "round:3", "dp.spent", *keys))["entries"]
    assert [row["site"] for row in in_round] == big.sites
    assert "0 entries" in run("search", big.folder, "no-such-thing", *keys[:-1])


def test_epsilon_on_the_command_line(run, big):
    found = json.loads(run("epsilon", big.folder, "--trust", big.trust, "--identity", big.identity, "--json"))["spent"]
    assert [one["rounds"] for one in found] == [24, 22, 24, 24]
    for name in ("delta", "unit", "adjacency", "accountant", "steps", "plan_epsilon"):
        assert found[0][name], name
    out = run("epsilon", big.folder, "--trust", big.trust, "--identity", big.identity)
    assert "δ = 1e-05 per patient at one hospital; neighbours by add-or-remove-one; PLD" in out
