"""What is said about Adam's noise holds for Adam itself, and the quietest round is one of two."""

import numpy as np
import pytest

from wardround_common.adam import adam_noise_std, learning_rate_factor, least_noise_std


def adam_walk(rates: list[float], before: int, coordinates: int) -> np.ndarray:
    """Return what Adam adds up to in the last len(rates) steps, fed with unit noise; `before` steps came earlier."""
    rng = np.random.default_rng(2)
    m = v = total = np.zeros(coordinates)
    for t, rate in enumerate([0.0] * before + rates, start=1):
        g = rng.normal(size=coordinates)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        total = total + rate * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t))
    return total


@pytest.mark.parametrize("before", [0, 5, 400])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_the_noise_estimate_is_a_lower_bound_of_what_adam_does(before: int, steps: int) -> None:
    """One late step alone comes nearest: momentum spreads its noise over the steps around it."""
    rates = [0.01] * steps
    measured, bound = adam_walk(rates, before, 4_000).std(), adam_noise_std(tuple(rates))
    assert measured > bound * 0.97  # the estimate from 4,000 coordinates is good to about 1 %
    if before == 400 and steps == 1:
        assert measured < bound * 1.03


@pytest.mark.parametrize(("rounds", "steps"), [(1, 1), (1, 40), (2, 3), (20, 5), (100, 1)])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_no_round_has_less_noise_than_the_quietest(rounds: int, steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, rounds * steps, warmup) for step in range(rounds * steps)]
    noises = [adam_noise_std(factors[i : i + steps]) for i in range(0, len(factors), steps)]
    assert least_noise_std(rounds=rounds, steps=steps, warmup=warmup) == pytest.approx(min(noises))
