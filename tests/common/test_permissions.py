"""Secrets and decisions that others can get at are found, whatever they are."""

import os
from pathlib import Path

import pytest

from wardround_common.errors import ConfigError
from wardround_common.permissions import exposures, require_private

RULES = {"secrets": ("keys/*.key",), "decisions": ("policy.yaml", "state")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True)
    (home / "state").mkdir()
    (home / "keys" / "identity.key").touch(mode=0o600)
    (home / "policy.yaml").touch(mode=0o644)
    home.chmod(0o755)
    return home


def test_a_home_as_the_commands_make_it_is_fine(home: Path) -> None:
    require_private(home, **RULES)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_others_can_open_is_refused_even_in_a_closed_home(home: Path, mode: int) -> None:
    home.chmod(0o700)
    (home / "keys" / "identity.key").chmod(mode)
    with pytest.raises(ConfigError, match="holds a secret") as caught:
        require_private(home, **RULES)
    assert caught.value.code == "home-permissions"


@pytest.mark.parametrize("name", ["policy.yaml", "state", "."])
def test_a_decision_that_others_can_change_is_refused(home: Path, name: str) -> None:
    (home / name).chmod(0o777)
    assert [path for path, _ in exposures(home, **RULES)] == [home if name == "." else home / name]


def test_behind_a_closed_home_group_bits_do_no_harm(home: Path) -> None:
    (home / "policy.yaml").chmod(0o664)
    home.chmod(0o700)
    require_private(home, **RULES)


def test_other_peoples_files_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    found = {path.name: why for path, why in exposures(home, **RULES)}
    assert "another user" in found["identity.key"]
    assert "another user" in found["policy.yaml"]


def test_how_many_there_are_is_said(home: Path) -> None:
    (home / "keys" / "identity.key").chmod(0o644)
    (home / "policy.yaml").chmod(0o666)
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        require_private(home, **RULES)
