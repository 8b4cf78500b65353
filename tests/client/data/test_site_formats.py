"""A hospital's data set may be any format: found by client.toml, checked at approval, read as the daemon reads it."""

import dataclasses
import json
from pathlib import Path

import pytest
from peers.gatebench import Bench
from peers.hospital_files import FORMATS, document, write

from wardround_client.config import ClientConfig, Dataset, load, render
from wardround_client.consent import withdraw
from wardround_client.data.text import load_texts
from wardround_client.home import Home
from wardround_client.site_data import SiteData, load_site_texts
from wardround_common.errors import ConfigError, DataError
from wardround_common.study import Study

LONG = "seen on the ward in the morning " * 10
ROWS = [{"text": f"note {n}", "label": f"0{n % 3 + 1}", "patient": f"p{n // 2}"} for n in range(12)]


@pytest.fixture
def study() -> Study:
    made = Bench().study
    return made.model_copy(update={"privacy": made.privacy.model_copy(update={"unit": "patient"})})


def dataset(suffix: str, **changes: object) -> Dataset:
    """Return a data set whose label column has another name than the study's; FHIR needs no patient's column."""
    fhir = suffix == ".ndjson"
    names = {"label_column": "type|urn:departments" if fhir else "label", "unit_column": None if fhir else "patient"}
    return Dataset(path=f"notes{suffix}", **{**names, **changes})


def config(**datasets: Dataset) -> ClientConfig:
    return ClientConfig(site="north", server="localhost:1", datasets=datasets)


def require(root: Path, study: Study, **datasets: Dataset) -> int:
    return SiteData(home=Home(root), config=config(**datasets), policy=Bench().policy, study=study).require()


@pytest.mark.parametrize("suffix", FORMATS)
def test_approval_and_daemon_read_every_format_alike(tmp_path: Path, study: Study, suffix: str):
    write(tmp_path / f"notes{suffix}", ROWS)
    assert require(tmp_path, study, notes=dataset(suffix)) == 0
    found = load_site_texts(Home(tmp_path), config(notes=dataset(suffix)), study, strict=False)
    reference = write(tmp_path / "reference.csv", ROWS)
    wanted = load_texts(reference, study.task.model_copy(update={"label_column": "label"}), unit_column="patient")
    assert dataclasses.astuple(dataclasses.replace(found, units=found.units.tolist())) == dataclasses.astuple(  # type: ignore[arg-type]
        dataclasses.replace(wanted, units=wanted.units.tolist())  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_patient_under_two_identifiers_is_refused(tmp_path: Path, study: Study, suffix: str):
    write(tmp_path / f"notes{suffix}", [*ROWS, {**ROWS[0], "patient": "P.0"}])
    with pytest.raises(DataError, match="records 1 and 13") as caught:
        require(tmp_path, study, notes=dataset(suffix))
    assert caught.value.code == "data-patient-twice"
    write(tmp_path / f"notes{suffix}", [*ROWS, *({**ROWS[0], "text": LONG, "patient": p} for p in ("p1", "p2"))])
    with pytest.raises(DataError, match="first record 14"):
        require(tmp_path, study, notes=dataset(suffix))


def test_one_business_identifier_under_two_patients_is_refused(tmp_path: Path, study: Study):
    resources = [document(row) for row in ROWS]
    for number in (0, 5):
        resources[number]["subject"]["identifier"] = {"system": "urn:mrn", "value": "secret-7"}
    (tmp_path / "notes.ndjson").write_text("".join(json.dumps(one) + "\n" for one in resources))
    with pytest.raises(DataError, match="records 1 and 6") as caught:
        require(tmp_path, study, notes=dataset(".ndjson"))
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_withdrawn_patient_contributes_nothing_in_any_format(tmp_path: Path, study: Study, suffix: str):
    write(tmp_path / f"notes{suffix}", ROWS)
    (tmp_path / "ids.txt").write_text("P-1\n")
    withdraw(Home(tmp_path), "notes", tmp_path / "ids.txt")
    texts = load_site_texts(Home(tmp_path), config(notes=dataset(suffix)), study, strict=False).texts
    assert [number for number, text in enumerate(texts) if not text] == [2, 3]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_only_fhir_knows_its_patients_without_being_told(tmp_path: Path, study: Study, suffix: str):
    write(tmp_path / f"notes{suffix}", ROWS)
    with pytest.raises(ConfigError) as caught:
        require(tmp_path, study, notes=dataset(suffix, unit_column=None))
    assert caught.value.code == "dataset-without-unit"


def test_names_of_columns_survive_the_file(tmp_path: Path):
    wanted = config(notes=dataset(".ndjson", text_column="conclusion"), other=dataset(".csv"))
    (tmp_path / "client.toml").write_text(render(wanted))
    assert load(tmp_path) == wanted
