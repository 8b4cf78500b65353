"""Prices against published numbers, other accountants and a proven attack."""

import ctypes
import math
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.errors import BudgetError, PolicyError
from wardround_common.privacy import accountant
from wardround_common.privacy.accountant import calibrate, check_claim, every_site_price, plan_price, price
from wardround_common.privacy.composition import MAX_STEPS, Composition, compose
from wardround_common.privacy.crosscheck import epsilon_attacked, epsilon_rdp
from wardround_common.privacy.mechanism import SubsampledGaussian
from wardround_common.study import Privacy

STUDY = "sha256:" + "0" * 64


def record(**changes) -> SubsampledGaussian:
    fields = {
        "study": STUDY,
        "site": "general",
        "round": 1,
        "unit": "record",
        "adjacency": "add-or-remove-one",
        "sample_rate": 0.01,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "steps": 100,
        "records_per_unit": 1,
    }
    return SubsampledGaussian(**{**fields, **changes})


def privacy(**changes) -> Privacy:
    fields = {
        "unit": "record",
        "adjacency": "add-or-remove-one",
        "epsilon": 3.0,
        "delta": 1e-5,
        "sample_rate": 0.01,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "steps_per_round": 100,
        "rounds": 20,
        "divisor": 10.0,
    }
    return Privacy(**{**fields, **changes})


def test_the_measured_table():
    """q = 0.01, sigma = 1, T = 2000, delta = 1e-5: PLD on a grid of 1e-3 gives 2.585, two RDP accountants 2.866."""
    found = price([record(round=r) for r in range(1, 21)], 1e-5)
    assert found.epsilon == pytest.approx(2.585, abs=5e-4)
    assert found.epsilon_rdp == pytest.approx(2.866, abs=5e-4)
    assert (found.steps, found.delta, found.unit, found.adjacency) == (2000, 1e-5, "record", "add-or-remove-one")
    assert found.accountant.startswith("PLD (dp-accounting 0.6")
    assert "per record at this site (add-or-remove-one; PLD" in str(found)


def test_the_other_adjacency_is_reported_beside_it():
    """The measured table again: 4.194 where one unit is replaced instead of added or removed."""
    found = price([record(round=r) for r in range(1, 21)], 1e-5)
    assert found.epsilon_replaced == pytest.approx(4.194, abs=5e-4)
    assert "replace-one: 4.19" in str(found)


def test_opacus_rdp_and_prv_agree():
    """Opacus 1.6.0 prices the same plan; its PRV accountant is another implementation of loss distributions."""
    opacus = pytest.importorskip("opacus.accountants")
    rdp, prv = opacus.RDPAccountant(), opacus.PRVAccountant()
    rdp.history = prv.history = [(1.0, 0.01, 2000)]
    ours = price([record(steps=2000)], 1e-5)
    assert ours.epsilon_rdp == pytest.approx(rdp.get_epsilon(1e-5), rel=1e-3)
    upper = prv.get_epsilon(1e-5)  # its error is at most 0.01
    assert upper - 0.02 <= ours.epsilon <= upper


def test_one_gaussian_is_the_analytic_one():
    """Balle and Wang 2018: delta(eps) of one Gaussian mechanism is exact; q = 1, T = 1."""

    def delta_of(epsilon: float, noise: float) -> float:
        def above(z: float) -> float:
            return math.erfc(z / math.sqrt(2)) / 2

        return above(epsilon * noise - 0.5 / noise) - math.exp(epsilon) * above(epsilon * noise + 0.5 / noise)

    for noise in (0.8, 2.0, 7.0):
        epsilon = price([record(sample_rate=1.0, noise_multiplier=noise, steps=1)], 1e-5).epsilon
        assert delta_of(epsilon, noise) <= 1e-5
        assert delta_of(epsilon - 2e-3, noise) > 1e-5


def test_one_replaced_gaussian_is_the_analytic_one_with_twice_the_sensitivity():
    for noise in (1.6, 4.0):
        doubled = price([record(sample_rate=1.0, noise_multiplier=noise, steps=1)], 1e-5).epsilon_replaced
        assert doubled == pytest.approx(
            price([record(sample_rate=1.0, noise_multiplier=noise / 2, steps=1)], 1e-5).epsilon, abs=2e-3
        )


@given(
    rate=st.floats(1e-3, 1),
    noise=st.floats(0.5, 20),
    steps=st.integers(1, 3000),
    delta=st.sampled_from([1e-3, 1e-5, 1e-7]),
)
@settings(max_examples=10, deadline=None)
def test_the_price_lies_between_the_attack_and_rdp(rate, noise, steps, delta):
    composition = compose([(record(sample_rate=rate, noise_multiplier=noise, steps=steps), 1)])
    upper = epsilon_rdp(composition, delta)
    if upper.epsilon <= 60:
        found = price([record(sample_rate=rate, noise_multiplier=noise, steps=steps)], delta)
        assert epsilon_attacked(composition, delta) <= found.epsilon + 1e-3
        assert found.epsilon <= upper.epsilon + accountant.RDP_SLACK
        assert epsilon_attacked(composition, delta, replaced=True) <= found.epsilon_replaced + 1e-3
        assert found.epsilon - 1e-3 <= found.epsilon_replaced
        assert found.epsilon_replaced <= upper.replaced + accountant.RDP_SLACK


def test_the_attack_is_sharp_without_sampling():
    composition = Composition(unit="record", adjacency="add-or-remove-one", steps={(1.0, 5.0): 20})
    assert epsilon_attacked(composition, 1e-5) == pytest.approx(3.848, abs=0.01)  # PLD: 3.8486


def test_the_attack_on_a_replaced_unit_is_sharp_with_much_sampling():
    """A bound computed with cancellation would come out above PLD here, which cannot be."""
    composition = Composition(unit="record", adjacency="add-or-remove-one", steps={(0.5, 2.0): 50})
    found = epsilon_attacked(composition, 1e-5, replaced=True)
    assert found < price([record(sample_rate=0.5, noise_multiplier=2.0, steps=50)], 1e-5).epsilon_replaced
    assert found == pytest.approx(19.87, abs=0.02)


@pytest.mark.parametrize("wrong", [0.9, 50.0, math.inf, math.nan])
def test_accountants_that_disagree_give_no_price(monkeypatch, wrong):
    """Too small: below the attack's 1.84; too large: above RDP's 2.87; not a number: neither."""
    accountant._price_once.cache_clear()
    monkeypatch.setattr(accountant, "_epsilon_on_grid", lambda *_: wrong)
    with pytest.raises(BudgetError) as caught:
        price([record(steps=2000)], 1e-5)
    assert caught.value.code == "accounting-disagrees"
    accountant._price_once.cache_clear()


def test_equal_constants_are_priced_together():
    """Twenty rounds cost one composition; how long that takes is measured by the benchmark."""
    records = [record(round=r, clip_norm=float(r)) for r in range(1, 21)]
    assert compose([(record(), 20)]).steps == {(0.01, 1.0): 2000}
    assert compose([(one, 1) for one in records]).steps == {(0.01, 1.0): 2000}


def test_different_constants_compose():
    both = price([record(), record(noise_multiplier=2.0, round=2)], 1e-5).epsilon
    assert price([record()], 1e-5).epsilon < both < price([record(steps=200)], 1e-5).epsilon


def test_an_unknown_kind_is_never_skipped():
    class Strange:
        kind = "laplace"

    with pytest.raises(BudgetError, match="laplace") as caught:
        price([record(), Strange()], 1e-5)
    assert caught.value.code == "mechanism-unknown"
    renamed = record().model_copy(update={"kind": "poisson-subsampled-laplace"})
    with pytest.raises(BudgetError) as caught:
        price([renamed], 1e-5)
    assert caught.value.code == "mechanism-unknown"


@pytest.mark.parametrize("changes", [{"unit": "patient"}, {"adjacency": "replace-one"}])
def test_mixed_claims_have_no_price(changes):
    with pytest.raises(BudgetError) as caught:
        price([record(), record().model_copy(update=changes)], 1e-5)
    assert caught.value.code == "mechanism-mixed"


def test_hostile_plans_are_refused_before_they_cost_time():
    began = time.process_time()
    for changes in ({"noise_multiplier": 1e-200}, {"noise_multiplier": 0.09}):
        with pytest.raises(BudgetError) as caught:
            price([record(**changes)], 1e-5)
        assert caught.value.code == "epsilon-not-meaningful"
    with pytest.raises(BudgetError) as caught:
        price([record(noise_multiplier=0.2, sample_rate=0.5, steps=10_000)], 1e-5)
    assert caught.value.code == "epsilon-not-meaningful"
    with pytest.raises(BudgetError) as caught:
        plan_price(privacy(rounds=10_000, steps_per_round=10_000))
    assert caught.value.code == "plan-too-long"
    assert time.process_time() - began < 60  # seconds, not the hours that such plans would take
    assert MAX_STEPS == 100_000


def test_nothing_to_price_is_misuse():
    with pytest.raises(ValueError, match="at least one record"):
        price([], 1e-5)


def test_a_plan_costs_what_its_records_cost_spare_rounds_included():
    plan = privacy(rounds=4, spare_rounds=1)
    assert plan_price(plan) == price([record(round=r) for r in range(1, 6)], 1e-5)
    assert plan_price(plan, 2) == price([record(round=r) for r in (1, 2)], 1e-5)


def test_a_unit_at_every_site_pays_for_all():
    records = [record(round=r) for r in (1, 2)]
    assert every_site_price(records, 1e-5, sites=3) == price([record(round=r) for r in range(1, 7)], 1e-5)


def test_a_claim_below_the_plan_is_refused():
    assert check_claim(privacy(epsilon=2.586)).epsilon <= 2.586
    with pytest.raises(PolicyError, match=r"claims ε = 2\.58, but its plan costs ε = 2\.58") as caught:
        check_claim(privacy(epsilon=2.58))
    assert caught.value.code == "study-epsilon-too-small"
    with pytest.raises(PolicyError):  # the spare round counts too
        check_claim(privacy(epsilon=2.586, spare_rounds=1))


def test_calibration_asks_for_few_prices():
    asked = []

    def cost(point: int) -> float:
        asked.append(point)
        return 3000.0 / point**1.5 if point < 30_000 else 1e-3

    low, high = accountant._bracket(cost, 0.0029, 12_000)
    found = accountant._least(cost, 0.0029, low, high)
    assert cost(found) <= 0.0029 < cost(found - 1)
    assert len(set(asked)) <= 20


@pytest.mark.parametrize(("epsilon", "noise"), [(3.0, 0.931), (1.0, 1.846)])
def test_calibration_reaches_the_measured_noise_and_not_a_step_less(epsilon, noise):
    """q = 0.01, T = 2000, delta = 1e-5: measured 0.931 for eps 3, 1.846 for eps 1 (PLD)."""
    found = calibrate(epsilon, 1e-5, 0.01, 2000)
    assert found == pytest.approx(noise, abs=5e-4)
    assert round(found * 10_000) == pytest.approx(found * 10_000, abs=1e-6)
    assert price([record(steps=2000, noise_multiplier=found)], 1e-5).epsilon <= epsilon
    assert price([record(steps=2000, noise_multiplier=found - 1e-4)], 1e-5).epsilon > epsilon


def test_calibration_at_its_ends():
    low, high = accountant._bracket(lambda _: 0.5, 1.0, 5000)  # any noise would do
    assert accountant._least(lambda _: 0.5, 1.0, low, high) == 1000  # 0.1: no less than can be priced
    with pytest.raises(BudgetError) as caught:
        calibrate(1e-9, 1e-5, 0.5, 1000)
    assert caught.value.code == "epsilon-unreachable"


def test_importing_and_pricing_load_neither_torch_nor_flwr_and_print_nothing():
    code = (
        "import sys; from wardround_common.privacy import accountant as a; quiet = set(sys.modules);"
        "a._price_once('record', 'add-or-remove-one', (((0.1, 0.6), 20),), 1e-5);"  # some orders do not converge
        "assert 'dp_accounting' not in quiet;"
        "assert not {'torch', 'flwr', 'opacus'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_MANY_PRICES = """
import ctypes
from wardround_common.privacy import accountant

class Heap(ctypes.Structure):  # glibc's struct mallinfo2
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap

def used_after(counts):
    for count in counts:
        accountant._price_once("record", "add-or-remove-one", (((1.0, 11.0), count),), 1e-5)
    heap = mallinfo()
    return heap.uordblks + heap.hblkhd

few = used_after(range(200, 400, 40))
print(used_after(range(1800, 2000, 8)) - few)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 or newer what is in use")
def test_a_price_leaves_nothing_behind_that_grows_with_the_steps():
    """25 prices of 2,000 steps once kept 12 MB more than prices of 300: an FFT's tables for every length."""
    done = subprocess.run([sys.executable, "-c", _MANY_PRICES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3_000_000
