"""A reviewer gets a trust file from a co-signed study, and compares its fingerprints."""

import json
from pathlib import Path

import pytest
from peers.federation import wardround
from peers.studies import SITES, Cast, cosigned, make_study

from wardround_common.audit.note import log_key_of
from wardround_common.audit.trust import load_trust
from wardround_common.signing import fingerprint, public_key_text


@pytest.fixture
def cast() -> Cast:
    return Cast()


def _study(cast: Cast, folder: Path, *, signed_by_all: bool = True) -> tuple[Path, str]:
    study = make_study(cast, log=str(log_key_of("wardround/test", cast.log.public_key())))
    envelope = cosigned(cast, study)
    if not signed_by_all:
        envelope = envelope.model_copy(update={"signatures": envelope.signatures[:-1]})
    (folder / "study.json").write_bytes(envelope.to_bytes())
    return folder / "study.json", public_key_text(cast.operator.public_key())


def test_the_trust_file_holds_what_everybody_signed(cast: Cast, tmp_path: Path) -> None:
    study, operator = _study(cast, tmp_path)
    out = tmp_path / "trust.yaml"
    outcome = wardround("audit", "trust", study, "--operator", operator, "--out", out, "--json")
    assert outcome.code == 0, outcome.out
    trust = load_trust(out)
    assert set(trust.members) == set(SITES)
    assert trust.quorum == 3
    assert json.loads(outcome.out)["fingerprints"]["operator"] == fingerprint(operator)


def test_a_study_that_not_all_have_signed_gives_none(cast: Cast, tmp_path: Path) -> None:
    study, operator = _study(cast, tmp_path, signed_by_all=False)
    outcome = wardround("audit", "trust", study, "--operator", operator, "--out", tmp_path / "t.yaml", "--json")
    assert (outcome.code, outcome.error) == (1, "signature-missing")
    assert not (tmp_path / "t.yaml").exists()


def test_another_operator_gives_none(cast: Cast, tmp_path: Path) -> None:
    study, _ = _study(cast, tmp_path)
    stranger = public_key_text(Cast().operator.public_key())
    outcome = wardround("audit", "trust", study, "--operator", stranger, "--out", tmp_path / "t.yaml", "--json")
    assert outcome.code == 1


def test_a_trust_file_is_not_overwritten(cast: Cast, tmp_path: Path) -> None:
    study, operator = _study(cast, tmp_path)
    (tmp_path / "t.yaml").write_text("mine")
    outcome = wardround("audit", "trust", study, "--operator", operator, "--out", tmp_path / "t.yaml", "--json")
    assert (outcome.code, outcome.error) == (1, "file-exists")
