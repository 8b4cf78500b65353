"""The vault: nothing readable without the key, nothing under another name, nothing lost half-way."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_client.vault import Vault
from wardround_common.errors import StorageError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def vault(home: Path) -> Vault:
    return Vault(home / "state" / "sealed", home / "keys" / "local.key")


def unreadable(found: Vault, name: str) -> None:
    with pytest.raises(StorageError) as caught:
        found.open(name)
    assert caught.value.code == "vault-unreadable"


@pytest.mark.parametrize("data", [b"", b"s" * 32, os.urandom(200_000)])
def test_round_trip(home, data):
    found = vault(home)
    assert not found.holds("seed-1")
    found.seal("seed-1", data)
    assert found.holds("seed-1")
    assert found.open("seed-1") == vault(home).open("seed-1") == data


def test_the_secret_is_not_on_disk_and_files_are_private(home):
    secret = b"the seed of round one, 32 bytes!"
    vault(home).seal("seed-1", secret)
    for path in (home / "state" / "sealed").iterdir():
        assert secret not in path.read_bytes()
    for path in (home / "state" / "sealed" / "seed-1", home / "keys" / "local.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert re.fullmatch(rb"wardround-local-key:1:[A-Za-z0-9+/]{43}=\n", (home / "keys" / "local.key").read_bytes())
    assert os.listdir(home / "keys") == ["local.key"]
    assert repr(vault(home)) == f"Vault('{home}/state/sealed')"


def test_sealing_again_replaces_and_never_repeats_bytes(home):
    found = vault(home)
    path = home / "state" / "sealed" / "adam-1"
    found.seal("adam-1", b"one")
    first = path.read_bytes()
    found.seal("adam-1", b"one")
    assert path.read_bytes() != first
    found.seal("adam-1", b"two")
    assert found.open("adam-1") == b"two"


def test_destroyed_is_gone_and_destroying_again_is_nothing(home):
    found = vault(home)
    found.destroy("seed-1")
    found.seal("seed-1", b"x")
    found.destroy("seed-1")
    assert not found.holds("seed-1")
    unreadable(found, "seed-1")
    found.destroy("seed-1")


def test_a_file_under_another_name_does_not_open(home):
    found = vault(home)
    found.seal("seed-1", b"x")
    folder = home / "state" / "sealed"
    (folder / "seed-2").write_bytes((folder / "seed-1").read_bytes())
    unreadable(found, "seed-2")


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_damage_is_refused(tmp_path_factory, data):
    home = tmp_path_factory.mktemp("home")
    found = vault(home)
    found.seal("seed-1", b"s" * 32)
    path = home / "state" / "sealed" / "seed-1"
    sealed = path.read_bytes()
    bit, cut = data.draw(st.integers(0, 8 * len(sealed) - 1)), data.draw(st.integers(0, len(sealed) - 1))
    flipped = bytearray(sealed)
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (bytes(flipped), sealed[:cut], sealed + b"\x00"):
        path.write_bytes(damaged)
        unreadable(found, "seed-1")


def test_without_the_local_key_nothing_opens_and_none_is_made(home):
    """What a restored backup finds, as backups leave the key out."""
    found = vault(home)
    found.seal("seed-1", b"x")
    (home / "keys" / "local.key").unlink()
    unreadable(found, "seed-1")
    assert not (home / "keys" / "local.key").exists()
    found.seal("seed-2", b"y")  # a new key for new secrets
    assert found.open("seed-2") == b"y"
    unreadable(found, "seed-1")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_an_exposed_key_is_refused(home, mode):
    found = vault(home)
    found.seal("seed-1", b"x")
    (home / "keys" / "local.key").chmod(mode)
    for call in (lambda: found.open("seed-1"), lambda: found.seal("seed-2", b"y")):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.code == "local-key-exposed"


@pytest.mark.parametrize("content", [b"", b"AAAA\n", b"wardround-local-key:1:AAAA\n", b"wardround-local-key:1:!!\n"])
def test_a_damaged_key_is_refused_and_never_replaced(home, content):
    key = home / "keys" / "local.key"
    key.parent.mkdir()
    key.write_bytes(content)
    key.chmod(0o600)
    with pytest.raises(StorageError) as caught:
        vault(home).seal("seed-1", b"x")
    assert caught.value.code == "local-key-unusable"
    assert key.read_bytes() == content


def test_a_key_behind_a_link_is_refused(home):
    vault(home).seal("seed-1", b"x")
    key = home / "keys" / "local.key"
    key.rename(home / "elsewhere")
    key.symlink_to(home / "elsewhere")
    with pytest.raises(StorageError) as caught:
        vault(home).open("seed-1")
    assert caught.value.code == "local-key-unusable"


def test_two_first_uses_at_once_agree_on_one_key(home):
    code = (
        "import sys; from pathlib import Path; from wardround_client.vault import Vault;"
        "h = Path(sys.argv[1]); sys.stdin.read(1);"
        "Vault(h / 'state' / 'sealed', h / 'keys' / 'local.key').seal(sys.argv[2], b'x')"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(home), f"seed-{n}"], stdin=subprocess.PIPE) for n in range(4)
    ]
    for child in children:
        child.stdin.write(b"g")
        child.stdin.close()
    assert [child.wait(60) for child in children] == [0] * 4
    assert [vault(home).open(f"seed-{n}") for n in range(4)] == [b"x"] * 4
    assert os.listdir(home / "keys") == ["local.key"]


@pytest.mark.parametrize("name", ["", "../seed", "a/b", "Seed", "a.b", "-a", "a" * 101, "a\n", "a\x00"])
def test_names_cannot_leave_the_folder(home, name):
    for call in (vault(home).open, vault(home).holds, vault(home).destroy, lambda n: vault(home).seal(n, b"")):
        with pytest.raises(ValueError, match="vault name"):
            call(name)


def test_a_write_that_fails_leaves_the_old_secret(home, monkeypatch):
    found = vault(home)
    found.seal("adam-1", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError):
        found.seal("adam-1", b"new")
    monkeypatch.undo()
    assert found.open("adam-1") == b"old"
    assert os.listdir(home / "state" / "sealed") == ["adam-1"]


def test_what_a_killed_writer_left_is_named_and_destroyed(home):
    found = vault(home)
    for name in ("study-seed-1", "study-adam-1", "other-seed-1"):
        found.seal(name, b"x")
    folder = home / "state" / "sealed"
    (folder / ".study-seed-1.123.new").write_bytes(b"half")
    (folder / ".study-seed-2.456.new").write_bytes(b"half")
    (folder / "no name of ours").touch()
    assert found.names("study-") == ("study-adam-1", "study-seed-1", "study-seed-2")
    for name in found.names("study-"):
        found.destroy(name)
    assert sorted(os.listdir(folder)) == ["no name of ours", "other-seed-1"]
    with pytest.raises(ValueError, match="vault name"):
        found.names("../")


def test_what_cannot_be_removed_is_said(home, monkeypatch):
    found = vault(home)
    found.seal("seed-1", b"x")

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError) as caught:
        found.destroy("seed-1")
    assert caught.value.code == "vault-not-destroyed"
