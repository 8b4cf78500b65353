"""Evidence holds what was asked for, no secret whatever its name, and notices every later change."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.cli_evidence import GLOBS as CLIENT_GLOBS
from wardround_common import evidence
from wardround_common.errors import ConfigError, StorageError, VerificationError
from wardround_common.evidence import MANIFEST, export_evidence, verify_evidence
from wardround_common.identity.keys import private_pem
from wardround_common.signing import public_key_text
from wardround_server.cli_evidence import GLOBS as SERVER_GLOBS

KEY = Ed25519PrivateKey.generate()
IDENTITY = public_key_text(KEY.public_key())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name in ("keys", "state/sealed", "state/blobs", "approvals", "audit/log/tile", "studies/demo"):
        (home / name).mkdir(parents=True)
    (home / "client.toml").write_text('proxy = "http://user:canary-password@proxy:3128"\n')
    (home / "policy.yaml").write_text("a: 1\n")
    (home / "keys" / "identity.key").write_bytes(private_pem(KEY))
    (home / "keys" / "local.key").write_bytes(b"wardround-local-key:1:canary\n")
    (home / "keys" / "identity.pub").write_text(IDENTITY)
    (home / "keys" / "misnamed.pem").write_bytes(private_pem(Ed25519PrivateKey.generate()))
    (home / "approvals" / "aa.json").write_text("{}")
    (home / "state" / "sealed" / "seed").write_bytes(b"canary seed")
    (home / "state" / "agreed-aa.json").write_text("{}")
    (home / "audit" / "log" / "checkpoint").write_text("note")
    (home / "studies" / "demo" / "study.json").write_text("{}")
    (home / "studies" / "demo" / "update.key").write_bytes(b"canary update key")
    (home / "patients.csv").write_text("canary patient")
    (home / "keys" / "link.pub").symlink_to(home / "patients.csv")
    return home


def export(home: Path, out: Path, globs: tuple[str, ...] = CLIENT_GLOBS) -> set[str]:
    manifest = export_evidence(home, out, globs=globs, key=KEY, role="client", now=1.0)
    return {item.path for item in manifest.items}


@pytest.mark.parametrize("globs", [CLIENT_GLOBS, SERVER_GLOBS, ("**/*",)])
def test_no_secret_and_no_data_whatever_is_asked_for(home: Path, tmp_path: Path, globs: tuple[str, ...]) -> None:
    names = export(home, tmp_path / "out", globs)
    copied = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"PRIVATE KEY" not in copied
    assert b"canary-password" not in copied
    assert b"wardround-local-key" not in copied
    assert "keys/misnamed.pem" not in names
    assert "keys/link.pub" not in names
    if globs != ("**/*",):
        assert b"canary" not in copied


def test_what_is_there_is_copied_and_verifies(home: Path, tmp_path: Path) -> None:
    names = export(home, tmp_path / "out")
    assert names == {"client.toml", "policy.yaml", "keys/identity.pub", "approvals/aa.json", "state/agreed-aa.json"}
    assert {item.path for item in verify_evidence(tmp_path / "out", IDENTITY).items} == names
    assert export(home, tmp_path / "server", SERVER_GLOBS) >= {"audit/log/checkpoint", "studies/demo/study.json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "out").rglob("*"))


def test_the_home_is_not_changed(home: Path, tmp_path: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in home.rglob("*") if path.is_file()}
    export(home, tmp_path / "out", ("**/*",))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in home.rglob("*") if path.is_file()} == before


def _add(out: Path) -> None:
    (out / "planted").write_text("x")


def _remove(out: Path) -> None:
    (out / "policy.yaml").unlink()


def _change(out: Path) -> None:
    (out / "policy.yaml").write_text("a: 2\n")


@pytest.mark.parametrize("tamper", [_add, _remove, _change])
def test_what_was_changed_later_is_noticed(home: Path, tmp_path: Path, tamper) -> None:
    export(home, tmp_path / "out")
    tamper(tmp_path / "out")
    with pytest.raises(VerificationError) as caught:
        verify_evidence(tmp_path / "out", IDENTITY)
    assert caught.value.code == "evidence-altered"
    with pytest.raises(VerificationError):
        verify_evidence(tmp_path / "out", public_key_text(Ed25519PrivateKey.generate().public_key()))
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(ConfigError) as missing:
        verify_evidence(tmp_path / "out", IDENTITY)
    assert missing.value.code == "evidence-missing"


def test_a_folder_is_never_overwritten(home: Path, tmp_path: Path) -> None:
    export(home, tmp_path / "out")
    with pytest.raises(ConfigError):
        export(home, tmp_path / "out")


def test_a_disk_that_refuses(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evidence.shutil, "copystat", full)
    with pytest.raises(StorageError) as caught:
        export(home, tmp_path / "out")
    assert caught.value.code == "evidence-incomplete"
