"""A release folder: complete or absent, signed file by file, loadable names, an honest card."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from peers.studies import SITES, Cast, cosigned, make_adapter, make_study, study_task
from safetensors.numpy import load

from wardround_common.adapter import encode_tensors, initial_tensors
from wardround_common.audit.events import RoundEvaluated
from wardround_common.errors import StorageError, VerificationError
from wardround_common.privacy.accountant import plan_price
from wardround_common.privacy.mechanism import Evaluation
from wardround_common.signing import public_key_text
from wardround_common.study import Study
from wardround_server.release.build import CARD, CONFIG, PROVENANCE, STUDY, WEIGHTS, ReleaseInputs, build_release
from wardround_server.release.check import check_release

ADAPTER = "sha256:" + 64 * "a"


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


def evaluated(bench: Bench, **changes: object) -> tuple[Study, RoundEvaluated]:
    evaluation = Evaluation(every=2, held_out=0.25, noise_multiplier=2.0, loss_bound=4.0)
    study = bench.study.model_copy(
        update={"privacy": bench.study.privacy.model_copy(update={"evaluation": evaluation})}
    )
    fields = {
        "study": study.sha256(),
        "round": 2,
        "survivors": SITES,
        "adapter": ADAPTER,
        "sums": (300.0, -150.0, 100.0),
    }
    return study, RoundEvaluated(**{**fields, **changes})


def test_card_and_provenance_tell_what_hospitals_measured_as_noised(bench: Bench, tmp_path: Path):
    study, event = evaluated(bench)
    changes = {"study": study, "envelope": cosigned(bench.cast, study), "adapter": ADAPTER, "evaluations": (event,)}
    build_release(tmp_path / "r", bench.inputs(**changes))
    card = (tmp_path / "r" / CARD).read_text()
    assert f"{plan_price(study.privacy, 3).epsilon:.3f}" in card
    assert plan_price(study.privacy, 3).epsilon > plan_price(bench.study.privacy, 3).epsilon
    for fact in (
        "| evaluations | 1 × three noised sums over held-out records, noise multiplier 2.0, charged in the ε above |",
        "by 3 hospitals in round 2, of the released adapter. **All figures are noised**",
        "| held-out records, all hospitals together | 300 ± 6 |",
        "| accuracy, mean over records | 66.7 % ± 1.1 % |",
        "| loss in nats, mean over records, each record's limited to 4.0 | 1.000 ± 0.045 |",
        "| evaluation | on held-out records: hospitals sent noised, charged sums, see below |",
    ):
        assert fact in card, fact
    predicate = check_release(tmp_path / "r", bench.operator)["predicate"]
    assert predicate["evaluation"]["noisedSums"] == [300.0, -150.0, 100.0]
    assert predicate["evaluation"]["figures"]["accuracy"] == pytest.approx(2 / 3)
    assert predicate["privacy"]["evaluation"]["noise_multiplier"] == 2.0


@pytest.mark.parametrize(
    ("events", "fact"),
    [
        ({"sums": (20.0, 3.0, 4.0)}, "The noise is larger than what so few held-out records can show"),
        ({"adapter": "sha256:" + 64 * "1"}, "of an earlier adapter than the released one"),
        (None, "Nothing: no round that was released evaluated."),
    ],
)
def test_the_card_does_not_claim_what_was_not_measured(
    bench: Bench, tmp_path: Path, events: dict[str, object] | None, fact: str
):
    study, event = evaluated(bench, **(events or {}))
    changes = {"study": study, "envelope": cosigned(bench.cast, study), "adapter": ADAPTER}
    build_release(tmp_path / "r", bench.inputs(**changes, evaluations=() if events is None else (event,)))
    assert fact in (tmp_path / "r" / CARD).read_text()


def test_a_release_without_an_evaluation_says_that_hospitals_sent_no_metrics(bench: Bench, tmp_path: Path):
    build_release(tmp_path / "r", bench.inputs())
    card = (tmp_path / "r" / CARD).read_text()
    assert "| evaluation | none inside the study: hospitals sent no metrics |" in card
    assert "What the hospitals measured" not in card
    predicate = check_release(tmp_path / "r", bench.operator)["predicate"]
    assert "evaluation" not in predicate
    assert "evaluation" not in predicate["privacy"]


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
