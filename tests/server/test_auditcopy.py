"""A copy of the log verifies at its new place, also when the server writes meanwhile, and is an event."""

import threading
from pathlib import Path

import pytest
from peers.auditing import ORIGIN, Scene, round_started, started
from peers.federation import ok, wardround

from wardround_common.audit.events import LogExported
from wardround_common.audit.note import log_key_of
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.verify import verify_log
from wardround_common.errors import ConfigError, StorageError, VerificationError
from wardround_server.auditcopy import copy_log
from wardround_server.office import Office


def _key(scene: Scene):
    return log_key_of(ORIGIN, scene.log_key.public_key())


def test_a_copy_verifies_and_is_never_written_over(tmp_path: Path) -> None:
    scene, target = Scene(tmp_path / "server"), tmp_path / "copy"
    with scene.open() as log:
        log.append([round_started(1)])
        scene.cosign(log)
        size = copy_log(scene.folder, target, log=_key(scene))
    report = verify_log(LogFolder(target), scene.trust())
    report.require()
    assert (report.size, report.remarks) == (size, ())
    with pytest.raises(ConfigError, match="exists"):
        copy_log(scene.folder, target, log=_key(scene))


def test_a_copy_taken_while_the_server_writes_verifies(tmp_path: Path) -> None:
    scene, done = Scene(tmp_path / "server"), threading.Event()
    with scene.open() as log:
        log.append([started()] * 300)
        scene.cosign(log)

        def write() -> None:
            while not done.is_set():
                log.append([round_started(1)] * 40)
                log.publish()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            sizes = [copy_log(scene.folder, tmp_path / f"copy-{n}", log=_key(scene)) for n in range(8)]
        finally:
            done.set()
            writer.join()
    assert sizes == sorted(sizes)
    for number, size in enumerate(sizes):
        report = verify_log(LogFolder(tmp_path / f"copy-{number}"), scene.trust())
        report.require()
        assert report.size == size


def test_a_damaged_log_is_not_handed_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "server")
    with scene.open() as log:
        log.append([started()] * 300)
        log.publish()
    bundle = next(path for path in (scene.folder / "log" / "tile" / "entries").rglob("000"))
    bundle.write_bytes(bundle.read_bytes()[:-1] + b"!")
    with pytest.raises(VerificationError):
        copy_log(scene.folder, tmp_path / "copy", log=_key(scene))
    assert not (tmp_path / "copy").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path / "server")
    with scene.open() as log:
        log.append([started()])
        log.publish()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageError) as caught:
        copy_log(scene.folder, tmp_path / "copy", log=_key(scene))
    assert caught.value.code == "audit-not-copied"
    assert not (tmp_path / "copy").exists()


def test_the_command_logs_that_a_copy_was_handed_out(tmp_path: Path) -> None:
    recipient = ok("audit", "keygen", tmp_path / "reviewer.key")["recipient"]
    home, copy = tmp_path / "server", tmp_path / "copy"
    reviewer = ("--reviewer", f"board={recipient}")
    ok("server", "init", "--home", home, "--name", "operator", "--address", "localhost:8443", *reviewer)
    command = ("server", "audit", "copy", "--home", home, "--out", copy)
    assert wardround(*command, "--json").error == "log-file-missing"
    office = Office.open(home)
    scene = Scene(home, log_key=office.log_key)
    with scene.open(origin=office.origin) as log:
        log.append([started()])
        log.publish()
        size = log.size
    assert ok(*command)["entries"] == size
    events = [item.event for item in Office.open(home).registry.take_events()]
    assert events[-1] == LogExported(size=size)
