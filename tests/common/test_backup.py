"""Backups: sealed, complete, readable without wardround, and restored whole or not at all."""

import errno
import io
import os
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from pathlib import Path

import pyrage
import pytest

from wardround_common import backup
from wardround_common.backup import HEAD, restore_backup, write_backup
from wardround_common.errors import ConfigError, StorageError, VerificationError, WardroundError

KEY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()
TAKE = ("*.toml", "keys/identity.*", "state/*.db", "state/blobs/*", "studies/**/*", "keys/*.key")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name in ("keys", "state/blobs", "studies/a b"):
        (home / name).mkdir(parents=True)
    (home / "client.toml").write_text("site = 'ä'\n")
    (home / "keys" / "identity.key").write_bytes(b"PRIVATE KEY-----canary")
    (home / "keys" / "identity.key").chmod(0o600)
    (home / "studies" / "a b" / "study.json").write_text("{}")
    (home / "state" / "blobs" / "big").write_bytes(os.urandom(3_000_001))
    (home / "texts.csv").write_text("patients")
    (home / "studies" / ".x.1.new").write_text("left aside by a crash")
    (home / "studies" / "link").symlink_to(home / "texts.csv")
    return home


def write(home: Path, out: Path | None = None, key: pyrage.x25519.Identity = KEY) -> Path:
    out = out or home.parent / "b"
    write_backup(home, out, take=TAKE, role="client", recipients=[key.to_public()])
    return out


def restore(file: Path, home: Path, key: pyrage.x25519.Identity = KEY) -> backup.Head:
    return restore_backup(file, home, role="client", identity=key)


def code(call, error: type[WardroundError]) -> str:
    with pytest.raises(error) as caught:
        call()
    return caught.value.code


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_on_the_list_comes_back_and_nothing_else(home, tmp_path):
    file = write(home)
    head = restore(file, tmp_path / "new")
    found = files(tmp_path / "new")
    assert set(found) == {"client.toml", "keys/identity.key", "studies/a b/study.json", "state/blobs/big"}
    assert all(data == (home / name).read_bytes() for name, data in found.items())
    assert head.role == "client"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "keys" / "identity.key").stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "home", "new"], "nothing is left aside"


def test_nothing_lies_on_the_disk_in_plain(home):
    file = write(home)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"canary" not in file.read_bytes()
    assert file.read_bytes().startswith(b"age-encryption.org/v1\n")


@pytest.mark.skipif(shutil.which("age") is None, reason="needs age (Debian: apt-get install age)")
def test_it_opens_with_age_and_tar_alone(home, tmp_path):
    file, key = write(home), tmp_path / "backup.key"
    key.write_text(str(KEY))
    plain = subprocess.run(["age", "--decrypt", "-i", key, file], capture_output=True, check=True).stdout
    (tmp_path / "by-hand").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "by-hand"], input=plain, check=True)
    by_hand = files(tmp_path / "by-hand")
    assert by_hand.pop(HEAD).startswith(b'{"created":')
    restore(file, tmp_path / "new")
    assert by_hand == files(tmp_path / "new")


def test_a_database_that_is_written_to_is_copied_between_two_transactions(home, tmp_path):
    path = home / "state" / "ledger.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA user_version = 7")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES ('committed')")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO t VALUES ('not yet')")
    file = write(home)
    writer.execute("COMMIT")
    writer.close()
    restore(file, tmp_path / "new")
    copy = sqlite3.connect(tmp_path / "new" / "state" / "ledger.db")
    assert copy.execute("SELECT x FROM t").fetchall() == [("committed",)]
    assert copy.execute("PRAGMA user_version").fetchone() == (7,)
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.close()


def test_a_damaged_database_is_no_backup(home, tmp_path):
    (home / "state" / "ledger.db").write_bytes(b"no database at all" * 100)
    assert code(lambda: write(home), StorageError) == "backup-database"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


def test_keys_that_are_renewed_meanwhile_are_no_backup(home, tmp_path, monkeypatch):
    add = backup._add_file

    def renew(tar, home_, path):
        if path.name == "identity.key":
            (home / "keys" / "new").write_bytes(b"another")
            os.replace(home / "keys" / "new", path)
        return add(tar, home_, path)

    monkeypatch.setattr(backup, "_add_file", renew)
    assert code(lambda: write(home), StorageError) == "backup-keys-changed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


def test_a_file_that_is_gone_when_its_turn_comes_is_left_out(home, tmp_path, monkeypatch):
    add = backup._add_file

    def vanish(tar, home_, path):
        if path.name == "big":
            path.unlink()
        return add(tar, home_, path)

    monkeypatch.setattr(backup, "_add_file", vanish)
    restore(write(home), tmp_path / "new")
    assert "state/blobs/big" not in files(tmp_path / "new")


def test_nothing_is_overwritten(home, tmp_path):
    file = write(home)
    assert code(lambda: write(home), ConfigError) == "file-exists"
    assert code(lambda: restore(file, home), ConfigError) == "file-exists"


def test_a_full_disk_while_writing(home, tmp_path, monkeypatch):
    def full(reader, writer, recipients):
        reader.read(100)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup.pyrage, "encrypt_io", full)
    assert code(lambda: write(home), StorageError) == "backup-not-written"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


def test_a_full_disk_while_restoring(home, tmp_path, monkeypatch):
    file = write(home)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup, "write_parts", full)
    assert code(lambda: restore(file, tmp_path / "new"), StorageError) == "backup-not-restored"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "home"]


def test_what_a_restore_that_was_cut_off_left_is_cleared(home, tmp_path):
    (tmp_path / ".new.restoring").mkdir()
    (tmp_path / ".new.restoring" / "old").touch()
    restore(write(home), tmp_path / "new")
    assert "old" not in files(tmp_path / "new")


@pytest.mark.parametrize("damage", ["key", "short", "shorter", "bit", "empty"])
def test_another_key_or_any_damage_restores_nothing(home, tmp_path, damage):
    file = write(home)
    data = bytearray(file.read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 1
    cut = {"short": len(data) - 1, "shorter": len(data) // 2, "empty": 0}.get(damage, len(data))
    file.write_bytes(data[:cut])
    key = OTHER if damage == "key" else KEY
    assert code(lambda: restore(file, tmp_path / "new", key), VerificationError) == "backup-not-opened"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "home"]


def test_a_missing_file(tmp_path):
    assert code(lambda: restore(tmp_path / "no", tmp_path / "new"), ConfigError) == "backup-missing"


def test_the_other_roles_backup(home, tmp_path):
    file = write(home)
    call = lambda: restore_backup(file, tmp_path / "new", role="server", identity=KEY)  # noqa: E731
    assert code(call, ConfigError) == "backup-other-role"
    assert not (tmp_path / "new").exists()


GOOD_HEAD = b'{"created":1,"format":"wardround/backup/1","role":"client","version":"0.1.0"}'


def sealed(path: Path, *entries: tarfile.TarInfo | tuple[str, bytes], head: bytes = GOOD_HEAD) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for entry in ((HEAD, head), *entries):
            info = tarfile.TarInfo(entry[0]) if isinstance(entry, tuple) else entry
            data = entry[1] if isinstance(entry, tuple) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(pyrage.encrypt(plain.getvalue(), [KEY.to_public()]))
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "entry",
    [
        ("../outside", b"x"),
        ("/tmp/outside", b"x"),
        ("a/../../outside", b"x"),
        ("client.toml/../client.toml", b"x"),
        ("a\nb", b"x"),
        special("link", tarfile.SYMTYPE),
        special("hard", tarfile.LNKTYPE),
        special("device", tarfile.CHRTYPE),
        special("fifo", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
    ],
    ids=lambda entry: entry[0] if isinstance(entry, tuple) else entry.name,
)
def test_nothing_but_plain_files_inside_comes_out(tmp_path, entry):
    file = sealed(tmp_path / "b", ("client.toml", b""), entry)
    assert code(lambda: restore(file, tmp_path / "new"), VerificationError) == "backup-malformed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_a_file_twice(tmp_path):
    file = sealed(tmp_path / "b", ("client.toml", b"1"), ("client.toml", b"2"))
    assert code(lambda: restore(file, tmp_path / "new"), VerificationError) == "backup-malformed"


@pytest.mark.parametrize("head", [b"", b"{}", b"[]", GOOD_HEAD.replace(b"/1", b"/2"), b"\xff"])
def test_a_head_of_something_else(tmp_path, head):
    file = sealed(tmp_path / "b", ("client.toml", b""), head=head)
    assert code(lambda: restore(file, tmp_path / "new"), VerificationError) == "backup-malformed"


@pytest.mark.parametrize("plain", [b"", b"not a tar" * 1000, bytes(10_240)])
def test_something_else_for_the_same_key(tmp_path, plain):
    file = tmp_path / "b"
    file.write_bytes(pyrage.encrypt(plain, [KEY.to_public()]))
    assert code(lambda: restore(file, tmp_path / "new"), VerificationError) == "backup-malformed"
