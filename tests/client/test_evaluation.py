"""What a hospital's evaluation lets out: sensitivity by brute force, noise, hold-out, and what a planted bug does."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peers.studies import SITES, Cast, make_study

from wardround_client import evaluation as product
from wardround_client.config import ClientConfig, Dataset
from wardround_client.data.text import TextData
from wardround_client.evaluation import Evaluator, Scores, noise_of, noised_sums, split, unit_vectors
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import plan_of
from wardround_client.opening import StudyOpener
from wardround_client.openstudy import Training
from wardround_client.randomness import KeystreamRandomness
from wardround_client.rounds import vault_prefix
from wardround_client.site_data import load_site_texts
from wardround_client.vault import Vault
from wardround_common.errors import BudgetError
from wardround_common.privacy.accountant import plan_price, price
from wardround_common.privacy.evaluation import UNIT_NORM, bound, noise_std
from wardround_common.privacy.mechanism import Evaluation
from wardround_common.rounds import BlobRef
from wardround_common.study import Study

EVALUATION = Evaluation(every=2, held_out=0.25, noise_multiplier=3.0, loss_bound=4.0)
KEY = bytes(range(32))
SEED = bytes(range(1, 33))


def study(**changes: Any) -> Study:
    plain = make_study(Cast())
    quick = {"sample_rate": 1.0, "noise_multiplier": 3.0}  # priced in closed form
    privacy = plain.privacy.model_copy(update={"evaluation": EVALUATION, "rounds": 4, **quick, **changes})
    return plain.model_copy(update={"privacy": privacy})


def scores(losses: Any, correct: Any, usable: Any = None) -> Scores:
    wanted = np.ones(len(losses), bool) if usable is None else np.array(usable, bool)
    return Scores(losses=np.array(losses, float), correct=np.array(correct, float), usable=wanted)


# -- sensitivity


def patients(rng: np.random.Generator) -> tuple[Scores, NDArray[np.int64]]:
    """Up to six patients with up to nine records each; losses far beyond the bound, none, and not a number at all."""
    owners = np.repeat(np.arange(rng.integers(1, 7)), rng.integers(1, 10))
    units = np.unique(owners[rng.permutation(len(owners))], return_inverse=True)[1].astype(np.int64)
    losses = rng.choice([0.0, 0.3, 2.0, 4.0, 50.0, 1e300, math.inf, math.nan, -7.0], size=len(units))
    found = scores(losses, rng.choice([0.0, 0.25, 1.0], size=len(units)), rng.random(len(units)) < 0.8)
    return found, units


def without_unit(found: Scores, units: NDArray[np.int64], gone: int) -> tuple[Scores, NDArray[np.int64]]:
    kept = units != gone
    part = scores(found.losses[kept], found.correct[kept], found.usable[kept])
    return part, np.unique(units[kept], return_inverse=True)[1].astype(np.int64)


def largest_move(vectors: Callable[..., NDArray[np.float64]], *, datasets: int = 400) -> float:
    """Brute force over neighbouring data sets: every patient of every data set left out once."""
    rng, moves = np.random.default_rng(0), []
    for _ in range(datasets):
        found, units = patients(rng)
        whole = vectors(found, units, 4.0).sum(axis=0)
        for gone in np.unique(units):
            fewer = vectors(*without_unit(found, units, int(gone)), 4.0)
            moves.append(float(np.linalg.norm(whole - fewer.sum(axis=0))))
    return max(moves)


def test_no_patient_moves_the_sums_further_than_the_noise_is_made_for():
    assert 0.99 * UNIT_NORM < largest_move(unit_vectors) <= UNIT_NORM * (1 + 1e-12)


@pytest.mark.parametrize("correct", [0.0, 1.0])
def test_the_bound_is_reached_by_records_and_by_patients_with_many_of_them(correct: float):
    """It is tight: the noise is no larger than it must be."""
    for count in (1, 2, 40):
        (vector,) = unit_vectors(scores([100.0] * count, [correct] * count), np.zeros(count, np.int64), 4.0)
        assert np.linalg.norm(vector) == pytest.approx(UNIT_NORM)


def test_records_as_units_and_all_neighbours_of_small_data_sets():
    values = list(itertools.product([0.0, 2.0, 9.0, math.nan], [0.0, 1.0]))
    for size in (1, 2, 3):
        for chosen in itertools.product(values, repeat=size):
            losses, correct = zip(*chosen, strict=True)
            whole = unit_vectors(scores(losses, correct), np.arange(size), 4.0).sum(axis=0)
            rest = unit_vectors(scores(losses[1:], correct[1:]), np.arange(size - 1), 4.0).sum(axis=0)
            assert np.linalg.norm(whole - rest) <= UNIT_NORM * (1 + 1e-12)


def test_what_a_patient_adds_is_the_mean_over_usable_records():
    found = scores([0.5, 6.0, 3.0], [1.0, 0.0, 1.0], [True, True, False])
    (example,) = unit_vectors(found, np.zeros(3, np.int64), 4.0)  # docs/spec/evaluation.md
    assert example.tolist() == [1.0, 0.125, 0.0]
    nothing = unit_vectors(scores([1.0, math.nan], [1.0, 1.0], [False, True]), np.array([0, 1]), 4.0)
    assert nothing.tolist() == [[0.0] * 3] * 2, "neither unusable nor non-finite patients count, and nothing tells"
    assert unit_vectors(scores([], []), np.zeros(0, np.int64), 4.0).shape == (0, 3)


def unclipped(found: Scores, units: NDArray[np.int64], loss_bound: float) -> NDArray[np.float64]:
    """The planted bug: the loss is scaled, but never limited, and nothing clips after it."""
    losses = np.where(found.losses < 1e9, found.losses, 0.0)
    vectors = np.stack([np.ones(len(units)), 2 * losses / loss_bound - 1, 2 * found.correct - 1], axis=1)
    return np.stack([np.bincount(units, weights=column) for column in vectors.T], axis=1)


def test_a_loss_that_is_not_clipped_is_caught_by_brute_force():
    assert largest_move(unclipped, datasets=20) > 2 * UNIT_NORM


def test_a_forgotten_limit_of_the_loss_alone_still_keeps_the_bound(monkeypatch: pytest.MonkeyPatch):
    """The whole vector is clipped too, so that one mistake in a coordinate costs accuracy and no privacy."""
    monkeypatch.setattr(product.np, "clip", lambda values, *_: values)
    assert largest_move(unit_vectors, datasets=50) <= UNIT_NORM * (1 + 1e-12)


# -- noise


def test_the_noise_has_the_agreed_spread_and_is_independent():
    randomness = KeystreamRandomness(SEED)
    vectors = np.tile([1.0, 0.5, -0.5], (10, 1))
    drawn = np.array([noised_sums(vectors, EVALUATION, 1e9, randomness) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(axis=0), [10.0, 5.0, -5.0], atol=5 * noise_std(EVALUATION) / 141)
    covariance = np.cov(drawn.T) / noise_std(EVALUATION) ** 2
    np.testing.assert_allclose(covariance, np.eye(3), atol=0.05)
    assert noise_std(EVALUATION) == pytest.approx(3 * math.sqrt(3))


def test_sums_beyond_the_bound_keep_their_ratios():
    vectors = np.tile([1.0, 0.5, -0.25], (100_000, 1))
    free, held = (noised_sums(vectors, EVALUATION, most, KeystreamRandomness(SEED)) for most in (1e9, 1000.0))
    np.testing.assert_allclose(held / held[0], free / free[0], rtol=1e-12)
    assert 999.0 < held.max() <= 1000.0
    assert np.abs(held.astype(np.float32)).max() <= np.float32(1000.0)


class Counted:
    """Scores that do not depend on the adapter; counts how often they were asked for."""

    def __init__(self, count: int) -> None:
        self.asked = 0
        self.count = count

    def __call__(self, tensors: Any) -> Scores:
        self.asked += 1
        return scores([1.0] * self.count, [1.0] * self.count)


def test_rounds_that_do_not_evaluate_compute_nothing_and_say_nothing():
    agreed, score = study(), Counted(50)
    evaluator = Evaluator(study=agreed, units=np.arange(50), score=score)
    assert evaluator.sums({}, 1, SEED).tolist() == [0.0, 0.0, 0.0]
    assert score.asked == 0
    first, again, other = (evaluator.sums({}, 2, seed) for seed in (SEED, SEED, KEY))
    assert score.asked == 3
    assert first.dtype == np.float32
    assert first.tolist() == again.tolist() != other.tolist()
    spread, truth = noise_std(EVALUATION), np.array([50.0, -25.0, 50.0])
    assert (np.abs(first - truth) < 6 * spread).all()
    assert (first != truth).all()
    assert np.abs(first).max() <= bound(EVALUATION, agreed.privacy.nominal_units)


def test_the_noise_of_an_evaluation_is_not_that_of_training():
    assert noise_of(SEED).bytes(32) == noise_of(SEED).bytes(32) != KeystreamRandomness(SEED).bytes(32)
    assert "units" not in repr(Evaluator(study=study(), units=np.arange(3), score=Counted(3)))


# -- who is held out


def data(count: int, *, unit: str = "record", prefix: str = "note") -> TextData:
    owners = np.arange(count) // 2 if unit == "patient" else np.arange(count)
    return TextData(
        texts=tuple(f"{prefix} {i}" for i in range(count)),
        labels=tuple(i % 3 for i in range(count)),
        responses=(),
        units=owners.astype(np.int64),
        unit=unit,  # type: ignore[arg-type]
    )


def test_every_record_is_on_one_side_and_about_the_agreed_share_is_held_out():
    whole = data(4000)
    trained, held = split(whole, None, KEY, 0.25)
    assert sorted([*trained.texts, *held.texts]) == sorted(whole.texts)
    assert abs(len(held.texts) - 1000) < 6 * math.sqrt(4000 * 0.25 * 0.75)
    assert held.units.tolist() == list(range(len(held.texts)))
    for text, label in zip(held.texts, held.labels, strict=True):
        assert whole.labels[whole.texts.index(text)] == label


def test_patients_stay_whole_however_their_identifier_is_written():
    whole = data(400, unit="patient")
    names = tuple(f"{i // 2:04d}-A" if i % 2 else f"{i // 2} a" for i in range(400))
    trained, held = split(whole, tuple(f"{i // 2}" for i in range(400)), KEY, 0.25)
    assert set(np.bincount(held.units)) == set(np.bincount(trained.units)) == {2}
    parts = split(whole, names, KEY, 0.25)
    assert set(np.bincount(parts[1].units)) == {2}, "0007-A and 7 a are one patient"


def test_the_split_does_not_depend_on_other_patients_and_not_on_the_order():
    whole, names = data(400, unit="patient"), tuple(f"{i // 2}" for i in range(400))
    held = set(split(whole, names, KEY, 0.25)[1].texts)
    order = np.random.default_rng(1).permutation(400)[:250]
    fewer = TextData(
        texts=tuple(whole.texts[i] for i in order),
        labels=tuple(whole.labels[i] for i in order),
        responses=(),
        units=np.unique(whole.units[order], return_inverse=True)[1],
        unit="patient",
    )
    assert set(split(fewer, tuple(names[i] for i in order), KEY, 0.25)[1].texts) == held & set(fewer.texts)
    assert set(split(whole, names, SEED, 0.25)[1].texts) != held, "another key, another split"


def opener(folder: Path) -> StudyOpener:
    lines = [f"{text},{i % 3 + 1:02d},P{i // 3}" for i, text in enumerate(f"note {i}" for i in range(240))]
    (folder / "texts.csv").write_text("\n".join(["text,chapter,patient", *lines]) + "\n")
    config = ClientConfig(
        site=SITES[0], server="localhost:1", datasets={"notes": Dataset(path="texts.csv", unit_column="patient")}
    )
    home = Home(folder)
    vault = Vault(home.sealed, home.local_key)
    nothing: Any = None
    return StudyOpener(
        home=home, config=config, gate=nothing, ledger=nothing, vault=vault, blobs=nothing, board=nothing,
        key=nothing, get_study=nothing, training=Training(), show=nothing,
    )  # fmt: skip


def test_opening_a_study_holds_whole_patients_out_by_a_key_that_stays_with_it(tmp_path: Path):
    agreed = study(unit="patient", records_per_unit=2)
    opening = opener(tmp_path)
    whole = load_site_texts(opening.home, opening.config, agreed, strict=False)
    trained, evaluator = opening._split(agreed, whole, tmp_path)
    assert evaluator is not None
    assert trained.unit == "patient"
    assert set(np.bincount(trained.units)) == set(np.bincount(evaluator.units)) == {3}
    assert trained.unit_count + len(set(evaluator.units)) == 80
    again, _ = opener(tmp_path)._split(agreed, whole, tmp_path)  # the daemon was restarted
    assert again.texts == trained.texts
    other, _ = opening._split(study(unit="patient", rounds=5), whole, tmp_path)
    assert other.texts != trained.texts, "another study, another key"
    names = opening.vault.names(vault_prefix(agreed.sha256()))
    assert [name.removeprefix(vault_prefix(agreed.sha256())) for name in names] == ["held-out"]


def test_opening_a_study_without_an_evaluation_changes_nothing(tmp_path: Path):
    plain = study(evaluation=None, unit="patient")
    opening = opener(tmp_path)
    whole = load_site_texts(opening.home, opening.config, plain, strict=False)
    assert opening._split(plain, whole, tmp_path) == (whole, None)
    assert not list(tmp_path.glob("state/sealed/*"))


# -- the ledger


CAP = {"cap_epsilon": 30.0, "cap_delta": 1e-5}
DIGEST = "sha256:" + 64 * "a"


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.db", writer=True) as opened:
        yield opened


def begin(ledger: Ledger, agreed: Study, *rounds: int) -> None:
    for round_ in rounds:
        ledger.begin(agreed.sha256(), round_, DIGEST)
        ledger.commit(agreed.sha256(), round_, DIGEST, b"header", b"record", BlobRef(digest=DIGEST, length=1))


def test_approval_reserves_the_evaluations_too_and_rounds_are_charged_by_their_numbers(ledger: Ledger):
    agreed = study()
    assert ledger.reserve(agreed, **CAP) == plan_price(agreed.privacy)
    more = ledger.budget(**CAP).share(plan_of(agreed))
    less = ledger.budget(**CAP).share(plan_of(study(evaluation=None)))
    assert more > less
    assert ledger.budget(**CAP).taken.used == pytest.approx(more)
    begin(ledger, agreed, 2, 4)  # absent in the odd rounds: both of those it took part in evaluated
    records = [agreed.mechanism(SITES[0], round_) for round_ in (2, 4)]
    spent = ledger.spent(agreed.sha256())
    assert spent is not None
    assert abs(spent.epsilon - price(records, 1e-5).epsilon) <= 1e-9
    assert [row.mechanism.kind for row in ledger.history()] == ["evaluated-poisson-subsampled-gaussian"] * 2
    (row,) = ledger.summary()
    assert (row.rounds_spent, row.rounds_reserved, row.epsilon) == (2, 4, spent.epsilon)


def test_the_rest_is_given_back_at_the_end_and_the_rest_only(ledger: Ledger):
    agreed = study()
    ledger.reserve(agreed, **CAP)
    begin(ledger, agreed, 1, 2)
    assert ledger.release_rest(agreed.sha256()) == 2
    training, evaluated = agreed.mechanism(SITES[0], 1), agreed.mechanism(SITES[0], 2)
    plans = ledger.budget(**CAP).plans
    assert [times for _, times in plans] == [1, 1]
    assert ledger.spent(agreed.sha256()) == price([training, evaluated], 1e-5)


def test_a_plan_that_fits_only_without_its_evaluations_is_refused(ledger: Ledger):
    loud = EVALUATION.model_copy(update={"every": 1, "noise_multiplier": 0.5})
    without, agreed = study(evaluation=None), study(evaluation=loud)
    budget = ledger.budget(cap_epsilon=6.0, cap_delta=1e-5)
    assert budget.fits(plan_of(without))
    assert not budget.fits(plan_of(agreed))
    with pytest.raises(BudgetError, match="is missing") as caught:
        ledger.reserve(agreed, cap_epsilon=6.0, cap_delta=1e-5)
    assert caught.value.code == "budget-insufficient"
    assert ledger.summary() == ()
