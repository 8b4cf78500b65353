"""The sum: exact, independent of order, bounded."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.studies import Cast, make_study

from wardround_common.adam import ADAM_STEP
from wardround_common.adapter import TensorSpec, decode_tensors, encode_tensors
from wardround_common.errors import StorageError, VerificationError
from wardround_common.secagg.rules import Segment
from wardround_common.updates import update_bound
from wardround_server.rounds.aggregate import MeanUpdate, apply_update

SPECS = (TensorSpec(name="a", shape=(2, 3)), TensorSpec(name="b", shape=(4,)))


SIZE = sum(spec.size for spec in SPECS)


def _mean(bound: float = 1.0) -> MeanUpdate:
    return MeanUpdate([Segment(length=spec.size, bound=bound) for spec in SPECS], members=5)


def _whole(mean: MeanUpdate) -> np.ndarray:
    return np.concatenate(list(mean.value()))


def _add(mean: MeanUpdate, update: np.ndarray, cut: int = 3) -> None:
    mean.add(lambda: [update[:cut], update[cut:]])


def _update(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, SIZE).astype(np.float32)


def test_mean_equals_float64_mean_to_a_float32_step():
    rng = np.random.default_rng(1)
    updates = [_update(rng) for _ in range(5)]
    mean = _mean()
    for update in updates:
        _add(mean, update)
    np.testing.assert_allclose(_whole(mean), np.mean(np.float64(updates), axis=0), rtol=1e-6, atol=2**-28)


def test_order_of_answers_and_where_they_are_cut_does_not_change_one_bit():
    rng = np.random.default_rng(2)
    updates = [_update(rng) for _ in range(4)]
    results = set()
    for cut, order in enumerate(itertools.permutations(updates)):
        mean = _mean()
        for update in order:
            _add(mean, update, cut % SIZE)
        results.add(_whole(mean).tobytes())
    assert len(results) == 1


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=100))
def test_integer_sum_never_overflows_at_the_largest_cohort(values: list[float]):
    mean = MeanUpdate((Segment(length=1, bound=1.0),), members=100)
    for value in values:
        _add(mean, np.array([value], np.float32))
    assert abs(float(_whole(mean)[0]) - sum(values) / len(values)) < 1e-6


@pytest.mark.parametrize("bad", [1.5, -2.0, np.inf, np.nan])
@pytest.mark.parametrize("where", [0, 5, 6, 9])
def test_value_beyond_the_bound_is_refused_and_nothing_added(bad: float, where: int):
    mean = _mean()
    _add(mean, np.ones(SIZE, np.float32))
    hostile = np.zeros(SIZE, np.float32)
    hostile[where] = bad
    with pytest.raises(VerificationError) as caught:
        _add(mean, hostile)
    assert caught.value.code == "update-out-of-range"
    assert mean.count == 1
    np.testing.assert_array_equal(_whole(mean), np.ones(SIZE, np.float32))


def test_every_tensor_has_its_own_bound():
    mean = MeanUpdate([Segment(length=6, bound=1.0), Segment(length=4, bound=2.0)], members=5)
    _add(mean, np.array([1.0] * 6 + [2.0] * 4, np.float32), cut=7)
    with pytest.raises(VerificationError):
        _add(mean, np.array([1.0] * 5 + [2.0] * 5, np.float32), cut=7)


@pytest.mark.parametrize("cut", range(1, SIZE))
def test_what_was_added_of_an_update_that_does_not_hold_is_taken_out_again(cut: int):
    """To the last bit, also where values lie halfway between two steps."""
    rng = np.random.default_rng(cut)
    mean, alone = _mean(), _mean()
    honest, hostile = _update(rng), _update(rng) + np.float32(2**-31)
    _add(alone, honest)
    _add(mean, honest)
    hostile[-1] = np.nan
    with pytest.raises(VerificationError):
        _add(mean, hostile, cut)
    with pytest.raises(ValueError, match="read to its end"):
        mean.add(lambda: [hostile[:cut]])
    assert _whole(mean).tobytes() == _whole(alone).tobytes()
    assert mean.count == 1


def _unreadable() -> Iterator[np.ndarray]:
    yield np.zeros(3, np.float32)
    raise OSError("gone")


@pytest.mark.parametrize("again", [lambda: [np.zeros(2, np.float32)], _unreadable], ids=["shorter", "unreadable"])
def test_an_update_that_changes_before_it_is_taken_out_stops_the_round(again: Callable[[], Iterable[np.ndarray]]):
    mean = _mean()
    bad = [np.zeros(5, np.float32), np.full(SIZE - 5, np.nan, np.float32)]
    readings = iter([lambda: bad, again])
    with pytest.raises(StorageError) as caught:
        mean.add(lambda: next(readings)())
    assert caught.value.code == "update-changed-on-disk"
    assert mean.count == 0


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
    layout = tuple(SPECS)
    before = {"a": np.full((2, 3), 2, np.float32), "b": np.zeros(4, np.float32)}
    pieces = [np.ones(7, np.float32), np.full(3, 2, np.float32)]
    after = decode_tensors(b"".join(apply_update(io.BytesIO(encode_tensors(before)), pieces, layout)), layout)
    assert after["a"].tolist() == [[3.0] * 3] * 2
    assert after["b"].tolist() == [1.0, 2.0, 2.0, 2.0]
