"""The sum: exact, independent of order, bounded."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.studies import Cast, make_study

from wardround_common.adapter import TensorSpec
from wardround_common.errors import VerificationError
from wardround_common.secagg.rules import Segment
from wardround_common.updates import ADAM_STEP, update_bound
from wardround_server.rounds.aggregate import MeanUpdate, apply_update

SPECS = (TensorSpec(name="a", shape=(2, 3)), TensorSpec(name="b", shape=(4,)))


def _mean(bound: float = 1.0) -> MeanUpdate:
    segments = [Segment(length=spec.size, bound=bound) for spec in SPECS]
    return MeanUpdate(specs=SPECS, segments=segments, members=5)


def _update(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {spec.name: rng.uniform(-1, 1, spec.shape).astype(np.float32) for spec in SPECS}


def test_mean_equals_float64_mean_to_a_float32_step():
    rng = np.random.default_rng(1)
    updates = [_update(rng) for _ in range(5)]
    mean = _mean()
    for update in updates:
        mean.add(update)
    for spec in SPECS:
        exact = np.mean([u[spec.name].astype(np.float64) for u in updates], axis=0)
        np.testing.assert_allclose(mean.value()[spec.name], exact, rtol=1e-6, atol=2**-28)


def test_order_of_answers_does_not_change_one_bit():
    rng = np.random.default_rng(2)
    updates = [_update(rng) for _ in range(4)]
    results = set()
    for order in itertools.permutations(updates):
        mean = _mean()
        for update in order:
            mean.add(update)
        results.add(b"".join(mean.value()[spec.name].tobytes() for spec in SPECS))
    assert len(results) == 1


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=100))
def test_integer_sum_never_overflows_at_the_largest_cohort(values: list[float]):
    mean = MeanUpdate(specs=(TensorSpec(name="x", shape=(1,)),), segments=(Segment(length=1, bound=1.0),), members=100)
    for value in values:
        mean.add({"x": np.array([value], np.float32)})
    assert abs(float(mean.value()["x"][0]) - sum(values) / len(values)) < 1e-6


@pytest.mark.parametrize("bad", [1.5, -2.0, np.inf, np.nan])
def test_value_beyond_the_bound_is_refused_and_nothing_added(bad: float):
    mean = _mean()
    mean.add({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)})
    hostile = {"a": np.zeros((2, 3), np.float32), "b": np.array([0, 0, 0, bad], np.float32)}
    with pytest.raises(VerificationError) as caught:
        mean.add(hostile)
    assert caught.value.code == "update-out-of-range"
    assert mean.count == 1
    np.testing.assert_array_equal(mean.value()["b"], np.ones(4, np.float32))


def test_bound_admits_the_worst_honest_adam_run():
    """Gradients that grow by b2 / b1 a step meet the Cauchy-Schwarz bound with equality."""
    study = make_study(Cast())
    rate, steps = study.optimiser.head_rate, study.privacy.steps_per_round
    m = v = 0.0
    moves = []
    for t in range(2000):
        gradient = (0.999 / 0.9) ** t
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        moves.append(rate * m / v**0.5)
    reached = sum(moves[-steps:])
    bound = update_bound(study)("base_model.model.classifier.weight")
    assert 0.98 * bound < reached <= bound
    assert pytest.approx(7.27, abs=0.01) == ADAM_STEP


def test_apply_update_adds():
    before = {"a": np.full((2, 3), 2, np.float32), "b": np.zeros(4, np.float32)}
    after = apply_update(before, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    assert after["a"].tolist() == [[3.0] * 3] * 2
    assert before["a"].tolist() == [[2.0] * 3] * 2
