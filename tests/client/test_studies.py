"""What a site refuses while it opens a study: missing columns, inconsistent adapters, missing approvals."""

from pathlib import Path

import pytest
from peers.studies import Cast, make_adapter, make_study, study_task

from wardround_client.config import ClientConfig, Dataset
from wardround_client.gate import load_policy_approval
from wardround_client.home import Home
from wardround_client.opening import _require_initial
from wardround_client.site_data import load_site_texts
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, StorageError, VerificationError

TEXTS = "text,chapter,who\nburn of hand,01,a\nfever,02,a\ncough,03,b\n"


def _config(unit_column: str | None) -> ClientConfig:
    dataset = Dataset(path="texts.csv", unit_column=unit_column)
    return ClientConfig(site="north", server="localhost:1", datasets={"notes": dataset})


def _patient_study(cast: Cast):
    study = make_study(cast)
    return study.model_copy(update={"privacy": study.privacy.model_copy(update={"unit": "patient"})})


def test_a_study_about_patients_needs_the_patients_column(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(TEXTS)
    study = _patient_study(Cast())
    with pytest.raises(ConfigError) as caught:
        load_site_texts(Home(tmp_path), _config(None), study, strict=True)
    assert caught.value.code == "dataset-without-unit"
    data = load_site_texts(Home(tmp_path), _config("who"), study, strict=True)
    assert (data.unit, data.units.tolist()) == ("patient", [0, 0, 1])


def test_a_study_about_records_does_not_group_them(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(TEXTS)
    data = load_site_texts(Home(tmp_path), _config("who"), make_study(Cast()), strict=True)
    assert (data.unit, data.units.tolist()) == ("record", [0, 1, 2])


def test_an_adapter_that_does_not_follow_from_its_seed_is_refused() -> None:
    study = make_study(Cast())
    _, layout = make_adapter(study_task())
    _require_initial(study, layout)
    forged = study.adapter.model_copy(update={"initial": sha256_digest(b"chosen by the server")})
    with pytest.raises(VerificationError) as caught:
        _require_initial(study.model_copy(update={"adapter": forged}), layout)
    assert caught.value.code == "adapter-digest-differs"


def test_a_study_without_approval_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        load_policy_approval(Home(tmp_path).approval(sha256_digest(b"study")))
    assert caught.value.code == "approval-missing"
