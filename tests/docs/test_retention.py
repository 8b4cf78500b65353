"""docs/retention.md has a row for every place in the two homes (tests/e2e compares it with a finished run)."""

from fnmatch import fnmatch
from pathlib import Path

import pytest
from peers.retention import overlapping, patterns, undescribed

from wardround_client.home import Home as ClientHome
from wardround_server.home import Home as ServerHome

STUDY = "sha256:" + "a" * 64

METHODS = ("approval", "withdrawn", "study", "agreed", "ended", "update_key", "completed", "release")


def places(home: object, *, study: str) -> list[str]:
    root = Path("/home-of-a-test")
    found = []
    for name, value in vars(type(home)).items():
        if isinstance(value, property):
            found.append(getattr(home, name))
        elif callable(value) and name in METHODS:
            found.append(value(home, study))
    return [path.relative_to(root).as_posix() for path in found]


@pytest.mark.parametrize(
    ("side", "home", "study"),
    [("Hospital", ClientHome(Path("/home-of-a-test")), STUDY), ("Server", ServerHome(Path("/home-of-a-test")), "demo")],
)
def test_every_place_of_a_home_has_a_row(side: str, home: object, study: str) -> None:
    known = patterns(side)
    inside = ("", "/x", "/x.json", "/x.txt", "/x.pub", "/server.pem", "/ca.pem", "/log/x")  # a place may be a folder

    def described(place: str) -> bool:
        return any(fnmatch(place + end, pattern) for pattern in known for end in inside)

    assert [place for place in places(home, study=study) if not described(place)] == []


@pytest.mark.parametrize("side", ["Hospital", "Server"])
def test_no_file_has_two_rows(side: str) -> None:
    assert overlapping(side) == []
    assert len(patterns(side)) > 10


def test_an_unknown_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.db").touch()
    (tmp_path / "state" / "surprise.txt").touch()
    assert undescribed(tmp_path, "Hospital") == ["state/surprise.txt"]
    assert undescribed(tmp_path, "Hospital", besides=["state/*.txt"]) == []
