"""Small files are replaced as a whole or not at all."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wardround_common.errors import StorageError
from wardround_common.files import write_durably


def test_content_is_replaced_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_secrets_are_private_from_the_start(tmp_path: Path) -> None:
    write_durably(tmp_path / "secret", b"x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failure_leaves_the_old_content_and_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "state.json"
    write_durably(path, b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError) as caught:
        write_durably(path, b"new")
    monkeypatch.undo()
    assert caught.value.code == "file-not-written"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_threads_that_write_one_file_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, all_inside = tmp_path / "state.json", os.fsync, threading.Barrier(3, timeout=10)

    def meet(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            all_inside.wait()
        real(handle)

    monkeypatch.setattr(os, "fsync", meet)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda data: write_durably(path, data), [b"a" * 10, b"b" * 10, b"c" * 10]))
    assert path.read_bytes() in {b"a" * 10, b"b" * 10, b"c" * 10}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
