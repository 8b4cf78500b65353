"""A file that only informs ends nothing when the disk takes no more."""

from pathlib import Path

import pytest

from wardround_common import glance
from wardround_common.glance import GlanceFile


class Told:
    """Collects warnings."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(fields)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    kept = Told()
    monkeypatch.setattr(glance, "log", kept)
    return kept


def test_the_file_is_replaced_and_nothing_is_left_aside(tmp_path: Path, told: Told):
    file = GlanceFile(tmp_path / "state" / "status.json")
    file.write(b"one")
    file.write(b"two")
    assert (tmp_path / "state" / "status.json").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["status.json"]
    assert told.lines == []


def test_a_full_disk_is_told_once_and_again_after_it_worked(tmp_path: Path, told: Told, monkeypatch):
    file = GlanceFile(tmp_path / "status.json")
    file.write(b"before")
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", _no_space)
        file.write(b"lost")
        file.write(b"lost too")
    assert (tmp_path / "status.json").read_bytes() == b"before"
    assert told.lines == [{"file": "status.json", "why": "No space left on device"}]
    file.write(b"after")
    assert (tmp_path / "status.json").read_bytes() == b"after"
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", _no_space)
        file.write(b"lost")
    assert len(told.lines) == 2


def _no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")
