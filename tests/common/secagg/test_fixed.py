"""Fixed point: rounding, bounds, and how small the rounding error is beside the noise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.masked import Ward

from wardround_common.adam import ADAM_STEP, adam_noise_std
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.rounding import (
    MAX_FRACTION,
    MAX_ROUNDING_SHARE,
    fraction_bits,
    require_fine,
    rounding_share,
)
from wardround_common.secagg.rules import Segment


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


@pytest.mark.parametrize("members", [3, 10, 100])
@pytest.mark.parametrize("steps", [1, 20, 400])
def test_rounding_in_u32_is_far_below_one_per_cent_of_the_noise(members: int, steps: int) -> None:
    rate = 0.01
    segment = Segment(length=1, bound=steps * rate * ADAM_STEP)
    share = rounding_share(segment, adam_noise_std((rate,) * steps), members=members, bits=32)
    assert share < 1e-4 < MAX_ROUNDING_SHARE


def test_rounding_in_u16_has_room_for_small_studies_only() -> None:
    def share(members: int, steps: int) -> float:
        segment = Segment(length=1, bound=steps * 0.01 * ADAM_STEP)
        return rounding_share(segment, adam_noise_std((0.01,) * steps), members=members, bits=16)

    assert share(3, 20) < MAX_ROUNDING_SHARE
    assert share(10, 1) < MAX_ROUNDING_SHARE
    assert share(16, 20) > MAX_ROUNDING_SHARE
    assert share(100, 1) > MAX_ROUNDING_SHARE


def test_a_ring_that_rounds_too_coarsely_is_refused_in_so_many_words() -> None:
    require_fine(steps=5, noise_std=adam_noise_std([0.2] * 5), members=3, ring="u32")
    with pytest.raises(ValueError, match=r"u16 rounds too coarsely for 100 members and 5 steps.*use u32"):
        require_fine(steps=5, noise_std=adam_noise_std([0.2] * 5), members=100, ring="u16")
