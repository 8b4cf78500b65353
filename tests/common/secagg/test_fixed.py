"""Fixed point: rounding, bounds, and how small the rounding error is beside the noise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.masked import Ward

from wardround_common.secagg.fixed import (
    MAX_FRACTION,
    MAX_ROUNDING_SHARE,
    FixedPoint,
    adam_noise_std,
    fraction_bits,
    rounding_share,
)
from wardround_common.secagg.rules import Segment

ADAM_REACH = 7.3  # largest step of Adam in units of its rate (server/rounds/aggregate.py: ADAM_STEP)


@given(bound=st.floats(1e-9, 1e4), members=st.integers(3, 100))
def test_the_step_is_the_finest_that_cannot_overflow(bound: float, members: int) -> None:
    f = fraction_bits(bound, members=members, bits=32)
    assert members * round(bound * 2.0**f) <= 2**31 - 1
    assert f == MAX_FRACTION or members * round(bound * 2.0 ** (f + 1)) > 2**31 - 1


def test_bounds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        FixedPoint((Segment(length=1, bound=1e35),), members=3, ring="u32")
    with pytest.raises(ValueError, match="bound"):
        _ = Ward(n=3, changes={"segments": (Segment(length=1, bound=math.inf),)}).rules


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    ward = Ward(n=3)
    values = ward.updates()["site-000"]
    values[2] = bad
    with pytest.raises(ValueError, match="NaN"):
        ward.fixed.encode(values)
    with pytest.raises(ValueError, match="values"):
        ward.fixed.encode(values[1:])


@given(values=st.lists(st.floats(-0.5, 0.5, width=32), min_size=5, max_size=5))
def test_one_update_comes_back_within_half_a_step(values: list[float]) -> None:
    ward = Ward(n=3, changes={"segments": (Segment(length=5, bound=0.5),)})
    point, update = ward.fixed, np.array(values, np.float32)
    step = 2.0 ** -fraction_bits(0.5, members=3, bits=32)
    assert np.abs(point.mean(point.encode(update), survivors=1) - update).max() <= step / 2 + 2**-25


def test_rounding_error_is_unbiased_and_uniform_under_noise() -> None:
    """Noise many steps wide dithers: the error's mean is zero and its spread step / sqrt(12)."""
    ward = Ward(n=100, changes={"ring": "u16", "segments": (Segment(length=200_000, bound=1.0),)})
    point, rng = ward.fixed, np.random.default_rng(1)
    values = rng.normal(0, 0.1, 200_000).astype(np.float32)
    error = point.mean(point.encode(values), survivors=1).astype(np.float64) - values
    (expected,) = point.rounding_std()
    assert error.std() == pytest.approx(expected, rel=0.01)
    assert abs(error.mean()) < 5 * expected / math.sqrt(200_000)


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


@pytest.mark.parametrize("members", [3, 10, 100])
@pytest.mark.parametrize("steps", [1, 20, 400])
def test_rounding_in_u32_is_far_below_one_per_cent_of_the_noise(members: int, steps: int) -> None:
    rate = 0.01
    segment = Segment(length=1, bound=steps * rate * ADAM_REACH)
    share = rounding_share(segment, adam_noise_std((rate,) * steps), members=members, bits=32)
    assert share < 1e-4 < MAX_ROUNDING_SHARE


def test_rounding_in_u16_has_room_for_small_studies_only() -> None:
    def share(members: int, steps: int) -> float:
        segment = Segment(length=1, bound=steps * 0.01 * ADAM_REACH)
        return rounding_share(segment, adam_noise_std((0.01,) * steps), members=members, bits=16)

    assert share(3, 20) < MAX_ROUNDING_SHARE
    assert share(10, 1) < MAX_ROUNDING_SHARE
    assert share(16, 20) > MAX_ROUNDING_SHARE
    assert share(100, 1) > MAX_ROUNDING_SHARE
