"""`--out` can never delete what the demo did not make."""

import stat

import pytest

from wardround_demo.folder import MARKER, prepare
from wardround_demo.processes import DemoError


def test_a_new_folder_is_made_and_private(tmp_path):
    folder = prepare(tmp_path / "a" / "b")
    assert (folder.root / MARKER).exists()
    assert folder.server.is_dir()
    assert stat.S_IMODE((folder.root / "people").stat().st_mode) == 0o700


def test_an_earlier_demo_is_replaced(tmp_path):
    first = prepare(tmp_path / "out")
    (first.server / "old").write_text("x")
    assert not (prepare(tmp_path / "out").server / "old").exists()


def test_an_empty_folder_is_used(tmp_path):
    assert prepare(tmp_path).logs.is_dir()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(DemoError) as caught:
        prepare(tmp_path)
    assert caught.value.code == "demo-folder-foreign"
    assert (tmp_path / "thesis.doc").read_text() == "mine"


def test_a_file_is_left_alone(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DemoError) as caught:
        prepare(tmp_path / "out")
    assert caught.value.code == "demo-folder-foreign"
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DemoError) as caught:
        prepare(tmp_path / "file" / "out")
    assert caught.value.code == "demo-folder-unusable"
