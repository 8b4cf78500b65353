"""The stamp of a home: newer formats are refused before anything is read, homes without one get it."""

import json
from pathlib import Path

import pytest

from wardround_common import __version__
from wardround_common.errors import StorageError
from wardround_common.homeformat import HOME_FORMAT, STAMP, require_known_format, stamp


def write(home: Path, text: str) -> Path:
    path = home / STAMP
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_a_home_from_before_there_were_stamps_is_of_the_first_format_and_gets_one(tmp_path):
    require_known_format(tmp_path)
    stamp(tmp_path, "client")
    assert json.loads((tmp_path / STAMP).read_bytes()) == {
        "format": f"wardround/home/{HOME_FORMAT}",
        "role": "client",
        "version": __version__,
    }
    require_known_format(tmp_path)


def test_the_stamp_follows_an_upgrade_and_is_not_written_again_and_again(tmp_path):
    path = write(tmp_path, '{"format":"wardround/home/1","role":"server","version":"0.0.9"}')
    stamp(tmp_path, "server")
    assert json.loads(path.read_bytes())["version"] == __version__
    before = path.stat().st_ino
    stamp(tmp_path, "server")
    assert path.stat().st_ino == before


@pytest.mark.parametrize("more", ["", ',"site-rule":{"new":true}'])
def test_a_newer_home_is_refused_with_what_to_do_and_stays_as_it_is(tmp_path, more):
    text = f'{{"format":"wardround/home/{HOME_FORMAT + 1}","version":"9.1.0"{more}}}'
    path = write(tmp_path, text)
    for call in (lambda: require_known_format(tmp_path), lambda: stamp(tmp_path, "client")):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.code == "home-newer"
        assert "wardround 9.1.0" in caught.value.message
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":1}', '{"format":"wardround/home/0"}', "\0"])
def test_a_damaged_stamp_is_never_taken_for_an_old_home(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(StorageError) as caught:
        require_known_format(tmp_path)
    assert caught.value.code == "home-format-damaged"


def test_a_stamp_that_cannot_be_read(tmp_path):
    (tmp_path / STAMP).mkdir(parents=True)
    with pytest.raises(StorageError) as caught:
        require_known_format(tmp_path)
    assert caught.value.code == "home-format-damaged"
