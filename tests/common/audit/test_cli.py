import json
import stat
import subprocess
import sys

import pyrage
import pytest
from peers.auditing import NOW, SITES, Scene, play_round, started
from peers.disks import FastFiles
from typer.testing import CliRunner

from wardround_common.audit.cli import audit_app
from wardround_common.audit.events import ServerStarted, Unknown
from wardround_common.errors import WardroundError


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path / "home")
    scene.home.mkdir()
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
        play_round(scene, log, 1)
        scene.cosign(log)
        play_round(scene, log, 2)
    trust = scene.trust()
    members = "".join(f"  {site}: {key}\n" for site, key in trust.members.items())
    (tmp_path / "trust.yaml").write_text(
        f"log: {trust.log}\noperator: {trust.operator}\nmembers:\n{members}quorum: 2\n"
    )
    (tmp_path / "reviewer.key").write_text(f"# created by a test\n{scene.reviewer}\n")
    return scene


@pytest.fixture
def run(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments, error=None):
        result = CliRunner().invoke(audit_app, list(arguments))
        if error is None:
            assert result.exit_code == 0, result
        elif "--json" in arguments:
            assert result.exit_code in (1, 16, 32, 64, 128)
            assert json.loads(result.stdout)["error"]["code"] == error
        else:
            assert isinstance(result.exception, WardroundError), result
            assert result.exception.code == error
            assert result.exception.next_step
        return result.stdout

    return run


VERIFY = ("verify", "home/audit", "--trust", "trust.yaml")
SHOW = ("show", "home/audit", "--identity", "reviewer.key")


def test_keygen_writes_an_identity_that_only_its_owner_reads(run, tmp_path):
    recipient = run("keygen", "own.key").strip()
    path = tmp_path / "own.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().splitlines()[-1]
    identity = pyrage.x25519.Identity.from_str(secret)
    assert str(identity.to_public()) == recipient
    assert pyrage.decrypt(pyrage.encrypt(b"x", [pyrage.x25519.Recipient.from_str(recipient)]), [identity]) == b"x"
    before = path.read_bytes()
    out = run("keygen", "own.key", error="audit-key-exists")
    assert path.read_bytes() == before
    assert "AGE-SECRET" not in out + recipient
    run("keygen", "no/such/folder.key", error="audit-key-unwritable")
    assert json.loads(run("keygen", "two.key", "--json"))["recipient"].startswith("age1")


def test_verify_gives_four_answers(run, tmp_path):
    out = run(*VERIFY)
    for words in ("content intact", "append-only since last visit", "seen by 2 of 3 hospitals", "complete"):
        assert words in out
    assert "first visit" in out
    assert "4 entries are not yet witnessed" in out
    assert "later entries unknown" in out
    assert all(f"cosigned by {site} at 2026-11-22 07:00:00 UTC" in out for site in SITES)
    assert (tmp_path / "trust.last-seen.json").exists()
    assert "0 new entries" in run(*VERIFY)


def test_verify_in_json(run, scene):
    found = json.loads(run(*VERIFY, "--json"))
    assert "error" not in found
    assert found["answers"]["append_only"]["status"] == "unknown"
    assert (found["size"], found["cosigned_size"], found["attested_until"]) == (10, 6, NOW)
    assert found["complete_until"] is None
    (scene.folder / "log/tile/entries/000.p/10").write_bytes(b"")
    out = run(*VERIFY, "--json", error="log-entries-altered")
    found = json.loads(out)
    assert found["answers"]["intact"]["code"] == "log-entries-altered"


def test_verify_remembers_and_refuses_a_roll_back(run, scene, tmp_path):
    import shutil

    shutil.copytree(scene.home, tmp_path / "old")
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
        scene.cosign(log)
    run(*VERIFY)
    remembered = (tmp_path / "trust.last-seen.json").read_bytes()
    shutil.rmtree(scene.home)
    shutil.copytree(tmp_path / "old", scene.home)
    assert "NO" in run(*VERIFY, error="log-rolled-back")
    assert (tmp_path / "trust.last-seen.json").read_bytes() == remembered
    run(*VERIFY, "--last-seen", "other.json")  # as a first visit


def test_verify_with_a_last_seen_file_that_cannot_be_used(run, tmp_path):
    path = tmp_path / "trust.last-seen.json"
    for content in (b"{}", b"x" * 10_000, b"\xff"):
        path.write_bytes(content)
        run(*VERIFY, error="last-seen-unusable")
    path.unlink()
    path.mkdir()
    run(*VERIFY, error="last-seen-unusable")
    run(*VERIFY, "--last-seen", "no/such/file.json", error="last-seen-unwritable")


def test_verify_of_a_log_without_cosignatures(run, scene):
    (scene.folder / "log/checkpoint.cosigned").unlink()
    run(*VERIFY, error="log-not-witnessed")
    assert "10 entries are not yet witnessed" in run(*VERIFY, "--allow-unwitnessed")


def test_verify_of_no_folder(run):
    run("verify", "nowhere", "--trust", "trust.yaml", error="log-file-missing")
    run("verify", "home/audit", "--trust", "nowhere.yaml", error="config-missing")


def test_show_lists_entries(run):
    out = run(*SHOW)
    assert "10 of 10 entries shown; cosigned up to entry 5" in out
    assert "2026-11-22 07:00:00" in out
    assert "segment.open" in out
    lines = out.splitlines()
    marker = next(n for n, line in enumerate(lines) if "not yet cosigned" in line)
    assert lines[marker - 1].split()[0] == "5"
    assert lines[marker + 1].split()[0] == "6"
    assert out.count("update.received") == 6
    assert "run wardround audit verify" in out


def test_show_filters(run):
    assert run(*SHOW, "--kind", "update.received").count("update.received") == 6
    out = run(*SHOW, "--site", "northside")
    assert out.count("update.received") == 2
    assert out.count("round.started") == 2
    assert "server.start" not in out


def test_show_in_json(run):
    found = json.loads(run(*SHOW, "--json", "--kind", "round.started"))
    assert (found["size"], found["cosigned"]) == (10, 6)
    assert [entry["event"]["round"] for entry in found["entries"]] == [1, 2]
    assert found["entries"][0]["event"]["cohort"] == list(SITES)


def test_show_with_a_wrong_key(run):
    run("keygen", "other.key")
    out = run("show", "home/audit", "--identity", "other.key", error="audit-nothing-readable")
    assert "round.started" not in out


def test_show_with_a_file_that_is_no_key(run, tmp_path):
    (tmp_path / "empty.key").write_bytes(b"")
    (tmp_path / "text.key").write_bytes(b"\xffhello")
    for name in ("empty.key", "text.key"):
        run("show", "home/audit", "--identity", name, error="audit-identity-malformed")
    run("show", "home/audit", "--identity", "nowhere.key", error="audit-identity-missing")


def test_show_after_the_key_file_was_deleted(run, scene):
    next((scene.folder / "keys").iterdir()).unlink()
    assert "key file is missing" in run(*SHOW, error="audit-nothing-readable")


class Later(ServerStarted):
    """An event of a later version."""

    kind: str = "later.kind"


def test_show_keeps_unknown_kinds(run, scene):
    event = Later(version="0.1.0", config="sha256:" + "0" * 64)
    with scene.open(files=FastFiles()) as log:
        log.append([(event, frozenset())])
    out = run(*SHOW)
    assert "unknown" in out
    assert "kind=later.kind" in out
    entry = json.loads(run(*SHOW, "--json", "--kind", "unknown"))["entries"][0]
    assert entry["event"] == Unknown(kind=event.kind, v=1).model_dump()


def test_show_ends_with_an_error_when_an_entry_cannot_be_read(run, scene):
    class Broken:
        def to_bytes(self):
            return b"patient name"

    with scene.open(files=FastFiles()) as log:
        log.append([(Broken(), frozenset())])
    assert "unreadable" in run(*SHOW, error="log-entry-unreadable")
    assert json.loads(run(*SHOW, "--json", error="log-entry-unreadable"))["entries"][-1]["kind"] == "unreadable"


@pytest.mark.parametrize("command", ["keygen", "verify", "show"])
def test_every_command_has_an_example(command):
    result = CliRunner().invoke(audit_app, [command, "--help"])
    assert f"Example: wardround audit {command}" in " ".join(result.stdout.split())


def test_the_reviewers_tool_needs_neither_torch_nor_flwr_nor_grpc():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'flwr', 'grpc', 'numpy', 'transformers', 'wardround_server'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from wardround_common.audit.cli import audit_app\n"
        "audit_app(['--help'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
