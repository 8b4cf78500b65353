"""The Rényi filter: its losses against dp-accounting, its conversion, its arithmetic."""

import math

import dp_accounting
import pytest
from dp_accounting import rdp

from wardround_common.errors import BudgetError
from wardround_common.privacy.accountant import price
from wardround_common.privacy.composition import Composition, compose
from wardround_common.privacy.lifetime import (
    ORDERS,
    Cap,
    best_order,
    lifetime,
    needed_epsilon,
    renyi_epsilon,
    renyi_loss,
)
from wardround_common.privacy.mechanism import SubsampledGaussian


def record(**changes) -> SubsampledGaussian:
    fields = {
        "study": "sha256:" + "0" * 64,
        "site": "general",
        "round": 1,
        "unit": "patient",
        "adjacency": "add-or-remove-one",
        "sample_rate": 0.05,
        "noise_multiplier": 0.8,
        "clip_norm": 1.0,
        "steps": 6,
        "records_per_unit": 1,
    }
    return SubsampledGaussian(**{**fields, **changes})


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.01, 1.0, 2000), (0.05, 0.8, 120), (1.0, 5.0, 20), (0.5, 2.0, 50), (1e-4, 0.5, 10)]
)
def test_losses_and_conversion_are_dp_accountings(rate, noise, steps):
    composition = Composition(unit="record", adjacency="add-or-remove-one", steps={(rate, noise): steps})
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    for order in (2, 3, 7, 32, 256):
        theirs = rdp.RdpAccountant([order])
        theirs.compose(event, steps)
        loss = renyi_loss(composition, order)
        assert loss == pytest.approx(float(theirs._rdp[0]), rel=1e-6, abs=1e-12)
        # the conversion that a cap's budget inverts
        converted = float(theirs.get_epsilon(1e-5))
        assert Cap(epsilon=converted, delta=1e-5).budget(order) == pytest.approx(loss, rel=1e-6, abs=1e-9)


def test_a_loss_is_the_definition():
    """Rényi divergence of the two output densities at order 3, by the trapezoid rule."""
    rate, noise, order = 0.3, 1.1, 3

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))

    width, total = 1e-3, 0.0
    for i in range(-20_000, 20_000):
        x = i * width
        absent = density(x, 0.0)
        present = (1 - rate) * absent + rate * density(x, 1.0)
        total += width * (present**order / absent ** (order - 1) if absent else 0.0)
    composition = compose([(record(sample_rate=rate, noise_multiplier=noise, steps=1), 1)])
    assert renyi_loss(composition, order) == pytest.approx(math.log(total) / (order - 1), rel=1e-6)


def test_shares_add_and_fill_the_cap_exactly():
    cap, one = Cap(epsilon=10.0, delta=1e-5), (record(), 20)
    order = best_order(one, cap)
    used = lifetime([one], cap, order).used
    assert 0.4 < used < 0.6
    assert lifetime([one, (record(), 10)], cap, order).used == pytest.approx(1.5 * used)
    nothing = lifetime([], cap, order)
    assert (nothing.used, nothing.left) == (0, 1)
    enough = needed_epsilon([one], 1e-5, order)
    assert lifetime([one], Cap(epsilon=enough, delta=1e-5), order).used == pytest.approx(1.0)


def test_the_filter_is_more_careful_than_one_price_but_not_by_much():
    for changes, times in (({}, 20), ({"sample_rate": 0.01, "noise_multiplier": 1.0, "steps": 100}, 20)):
        plan = (record(**changes), times)
        exact = price([plan[0]] * times, 1e-5).epsilon
        assert exact < renyi_epsilon(compose([plan]), 1e-5) < 1.25 * exact


def test_the_best_order_is_best():
    cap, plan = Cap(epsilon=8.0, delta=1e-5), (record(), 20)
    best = best_order(plan, cap)
    assert lifetime([plan], cap, best).used == min(lifetime([plan], cap, order).used for order in ORDERS)


def test_a_cap_too_small_for_an_order_lets_nothing_through():
    assert lifetime([(record(), 1)], Cap(epsilon=0.5, delta=1e-5), 2).used == math.inf
    assert lifetime([(record(), 1)], Cap(epsilon=0.5, delta=1e-5), 2).left == 0


def test_units_are_not_mixed():
    with pytest.raises(BudgetError) as caught:
        lifetime([(record(), 1), (record(unit="record"), 1)], Cap(epsilon=8.0, delta=1e-5), 4)
    assert caught.value.code == "mechanism-mixed"
