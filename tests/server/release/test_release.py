"""A release folder: complete or absent, signed file by file, loadable names, an honest card."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from peers.studies import Cast, cosigned, make_adapter, make_study, study_task
from safetensors.numpy import load

from wardround_common.adapter import encode_tensors, initial_tensors
from wardround_common.errors import StorageError, VerificationError
from wardround_common.privacy.accountant import plan_price
from wardround_common.signing import public_key_text
from wardround_server.release.build import CARD, CONFIG, PROVENANCE, STUDY, WEIGHTS, ReleaseInputs, build_release
from wardround_server.release.check import check_release


class Bench:
    def __init__(self) -> None:
        self.cast = Cast()
        self.study = make_study(self.cast)
        _, self.layout = make_adapter(study_task())
        first = initial_tensors(self.layout, self.study.adapter.seed)
        self.trained = {spec.name: first[spec.name] + np.float32(0.5) for spec in self.layout.trained}
        self.operator = public_key_text(self.cast.operator.public_key())

    def inputs(self, **changes: object) -> ReleaseInputs:
        fields = {
            "study": self.study,
            "envelope": cosigned(self.cast, self.study),
            "layout": self.layout,
            "trained": encode_tensors(self.trained),
            "round_": 3,
            "rounds_run": 3,
            "checkpoint": "the cosigned checkpoint",
            "key": self.cast.operator,
        }
        return ReleaseInputs(**{**fields, **changes})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_release_checks_out_and_names_every_file(bench: Bench, tmp_path: Path):
    build_release(tmp_path / "r", bench.inputs())
    statement = check_release(tmp_path / "r", bench.operator)
    assert {subject["name"] for subject in statement["subject"]} == {WEIGHTS, CONFIG, STUDY, CARD}
    predicate = statement["predicate"]
    assert predicate["study"] == bench.study.sha256()
    assert predicate["audit"]["checkpoint"] == "the cosigned checkpoint"


def test_weights_are_the_trained_tensors_and_the_frozen_first_values(bench: Bench, tmp_path: Path):
    build_release(tmp_path / "r", bench.inputs())
    released = load((tmp_path / "r" / WEIGHTS).read_bytes())
    first = initial_tensors(bench.layout, bench.study.adapter.seed)
    assert set(released) == set(first)
    for spec in bench.layout.trained:
        np.testing.assert_array_equal(released[spec.name], bench.trained[spec.name])
    for spec in bench.layout.frozen:
        np.testing.assert_array_equal(released[spec.name], first[spec.name])


def test_building_twice_gives_the_same_adapter(bench: Bench, tmp_path: Path):
    for name in ("a", "b"):
        build_release(tmp_path / name, bench.inputs())
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_card_says_epsilon_with_delta_unit_adjacency_and_accountant(bench: Bench, tmp_path: Path):
    build_release(tmp_path / "r", bench.inputs())
    card = (tmp_path / "r" / CARD).read_text()
    price = plan_price(bench.study.privacy, 3)
    for fact in (f"{price.epsilon:.3f}", "1e-05", "record at one site", price.adjacency, price.accountant):
        assert fact in card
    assert "somebody with several records" in card  # unit record is not unit patient


def test_card_says_when_somebody_at_every_site_is_not_protected(bench: Bench, tmp_path: Path):
    """Three times a large ε has no meaningful price; that is a fact for the card, not a failure."""
    privacy = bench.study.privacy.model_copy(update={"noise_multiplier": 0.25, "epsilon": 90.0, "sample_rate": 0.2})
    study = bench.study.model_copy(update={"privacy": privacy})
    build_release(tmp_path / "r", bench.inputs(study=study, envelope=cosigned(bench.cast, study), rounds_run=6))
    assert "ε above 100: not protected" in (tmp_path / "r" / CARD).read_text()


def test_failed_rounds_are_paid_for_too(bench: Bench, tmp_path: Path):
    build_release(tmp_path / "r", bench.inputs(rounds_run=5))
    statement = check_release(tmp_path / "r", bench.operator)
    assert statement["predicate"]["privacy"]["epsilon"] == plan_price(bench.study.privacy, 5).epsilon
    assert plan_price(bench.study.privacy, 5).epsilon > plan_price(bench.study.privacy, 3).epsilon


def _flip(folder: Path) -> None:
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _flatter(folder: Path) -> None:
    card = folder / CARD
    card.write_text(card.read_text().replace("ε = ", "ε = 0."))


def _add(folder: Path) -> None:
    (folder / "extra.py").write_text("print('hello')")


def _remove(folder: Path) -> None:
    (folder / CONFIG).unlink()


def _unsign(folder: Path) -> None:
    (folder / PROVENANCE).unlink()


def _forge(folder: Path) -> None:
    envelope = json.loads((folder / PROVENANCE).read_bytes())
    envelope["signatures"] = []
    (folder / PROVENANCE).write_text(json.dumps(envelope, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("spoil", [_flip, _flatter, _add, _remove, _unsign, _forge])
def test_altered_release_is_refused(bench: Bench, tmp_path: Path, spoil: Callable[[Path], None]):
    folder = tmp_path / "r"
    build_release(folder, bench.inputs())
    spoil(folder)
    with pytest.raises(VerificationError):
        check_release(folder, bench.operator)


def test_release_by_another_operator_is_refused(bench: Bench, tmp_path: Path):
    build_release(tmp_path / "r", bench.inputs(key=Cast().operator))
    with pytest.raises(VerificationError):
        check_release(tmp_path / "r", bench.operator)


def test_failure_to_write_leaves_the_old_release(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "r"
    build_release(folder, bench.inputs())
    before = (folder / CARD).read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError) as caught:
        build_release(folder, bench.inputs(rounds_run=5))
    assert caught.value.code == "release-not-written"
    assert (folder / CARD).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_inputs_keep_the_key_out_of_their_repr(bench: Bench):
    assert "key" not in repr(bench.inputs())
