"""A patient who withdraws contributes nothing, and nothing else changes."""

from pathlib import Path

import pytest
from peers.federation import wardround
from peers.studies import Cast, make_study

from wardround_client import config as client_config
from wardround_client.consent import withdraw, withdrawn
from wardround_client.home import Home
from wardround_client.site_data import load_site_texts
from wardround_common.errors import ConfigError, DataError

CSV = "who,text,chapter\nP-1,first note,01\nP-2,second note,02\np1,third note,02\n,no owner,01\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "notes.csv").write_text(CSV)
    dataset = client_config.Dataset(path="notes.csv", unit_column="who")
    config = client_config.ClientConfig(site="north", server="localhost:1", datasets={"notes": dataset})
    (tmp_path / "client.toml").write_text(client_config.render(config))
    return Home(tmp_path)


def texts(home: Home, unit: str = "record") -> tuple[str, ...]:
    study = make_study(Cast())
    study = study.model_copy(update={"privacy": study.privacy.model_copy(update={"unit": unit})})
    return load_site_texts(home, client_config.load(home.root), study, strict=False).texts


def ids(home: Home, *names: str) -> Path:
    path = home.root / "ids.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return path


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_a_withdrawn_patients_records_are_muted_and_keep_their_place(home: Home, unit: str) -> None:
    before = texts(home, unit)
    assert withdraw(home, "notes", ids(home, "P-1")) == 1
    after = texts(home, unit)
    assert len(after) == len(before)
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [0, 2], "P-1 and p1 are one"
    assert (after[0], after[1], after[2]) == ("", "second note", "")


def test_the_list_grows_is_private_and_forgets_nobody(home: Home) -> None:
    withdraw(home, "notes", ids(home, "P-1", ""))
    assert withdraw(home, "notes", ids(home, "P-2", "P-1")) == 1
    assert withdrawn(home, "notes") == {"P-1", "P-2"}
    assert withdrawn(home, "other") == frozenset()
    assert home.withdrawn("notes").stat().st_mode & 0o777 == 0o600


def test_a_list_that_cannot_be_read_stops_training(home: Home) -> None:
    home.withdrawn("notes").parent.mkdir()
    home.withdrawn("notes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError) as caught:
        texts(home)
    assert caught.value.code == "consent-list-unreadable"


def test_an_empty_list_is_a_mistake(home: Home) -> None:
    with pytest.raises(DataError) as caught:
        withdraw(home, "notes", ids(home, "", " "))
    assert caught.value.code == "consent-list-empty"


def test_the_command_shows_no_identifier(home: Home) -> None:
    outcome = wardround("client", "consent", "withdraw", "notes", "--ids", ids(home, "P-1"), "--home", home.root)
    assert outcome.code == 0
    assert "P-1" not in outcome.out + outcome.err
    missing = wardround(
        "client", "consent", "withdraw", "scans", "--ids", ids(home, "x"), "--home", home.root, "--json"
    )
    assert missing.error == "config-unknown-dataset"
