"""A charged evaluation: its record, its price against independent calculations, and what its sums say."""

import math
from typing import Any

import numpy as np
import pytest
from peers.studies import SITES, Cast, make_study
from scipy.optimize import brentq
from scipy.stats import norm

from wardround_common.documents import canonical_json, parse_json
from wardround_common.errors import BudgetError, ProtocolError
from wardround_common.privacy.accountant import calibrate, every_site_price, plan_price, price, price_repeated
from wardround_common.privacy.composition import compose
from wardround_common.privacy.evaluation import UNIT_NORM, bound, figures, noise_std
from wardround_common.privacy.lifetime import renyi_loss
from wardround_common.privacy.mechanism import (
    EvaluatedGaussian,
    Evaluation,
    SubsampledGaussian,
    in_rounds,
    parse_record,
)
from wardround_common.secagg.rules import SecureAggregation
from wardround_common.study import Privacy, Study, UpdateProtection

EVALUATION = Evaluation(every=2, held_out=0.2, noise_multiplier=6.0, loss_bound=4.0)
QUICK = {"sample_rate": 1.0, "noise_multiplier": 4.0}
"""Without sampling the accountant's integrals are closed forms."""
CAST = Cast()


def study(evaluation: Evaluation | None = EVALUATION, **privacy: Any) -> Study:
    plain = make_study(CAST)
    changed = {**dict(plain.privacy), **privacy, "evaluation": evaluation}
    return Study(**{**dict(plain), "privacy": Privacy(**changed)})


# -- the record, and studies that have none


def test_a_study_without_an_evaluation_keeps_its_bytes():
    plain = make_study(CAST)
    before = parse_json(plain.to_bytes())
    assert "evaluation" not in before["privacy"]
    assert study(None).to_bytes() == plain.to_bytes()
    with pytest.raises(ProtocolError) as caught:
        Study.from_bytes(canonical_json({**before, "privacy": {**before["privacy"], "evaluation": None}}))
    assert caught.value.code == "document-not-canonical"


def test_a_study_with_one_has_it_in_its_bytes():
    agreed = study()
    assert parse_json(agreed.to_bytes())["privacy"]["evaluation"] == {
        "every": 2, "held_out": 0.2, "loss_bound": 4.0, "noise_multiplier": 6.0
    }  # fmt: skip
    assert Study.from_bytes(agreed.to_bytes()) == agreed


def test_rounds_that_evaluate_have_a_record_of_their_own_kind():
    agreed = study()
    records = [agreed.mechanism(SITES[0], round_) for round_ in (1, 2, 3, 4)]
    assert [type(record) for record in records] == [SubsampledGaussian, EvaluatedGaussian] * 2
    for record in records:
        assert parse_record(record.to_bytes()) == record
        assert (record.study, record.steps) == (agreed.sha256(), 2)
    assert isinstance(records[1], EvaluatedGaussian)
    assert records[1].training == SubsampledGaussian(**{**dict(records[0]), "round": 2})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "laplace"}, "document-invalid"),
        ({"kind": "poisson-subsampled-gaussian"}, "document-invalid"),  # with an evaluation that it does not know
        ({"evaluation": None}, "document-invalid"),
        ({"evaluation": {**EVALUATION.model_dump(), "noise_multiplier": 0.0}}, "document-invalid"),
        ({"evaluation": {**EVALUATION.model_dump(), "sample_rate": 0.1}}, "document-invalid"),
        ({"steps": 2.0}, "document-invalid"),
    ],
)
def test_records_that_are_not_known_are_refused(changes: dict[str, Any], code: str):
    known = parse_json(study().mechanism(SITES[0], 2).to_bytes())
    with pytest.raises(ProtocolError) as caught:
        parse_record(canonical_json({**known, **changes}))
    assert caught.value.code == code


def test_a_kind_that_is_not_known_is_not_priced():
    record = study().mechanism(SITES[0], 2).model_copy(update={"kind": "evaluated-laplace"})
    with pytest.raises(BudgetError, match="evaluated-laplace"):
        price([record], 1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"every": 0}, {"held_out": 0.0}, {"held_out": 0.6}, {"noise_multiplier": 0.0}, {"loss_bound": 0.0},
        {"loss_bound": math.inf},
    ],
)  # fmt: skip
def test_limits_of_what_an_operator_can_write(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Evaluation(**{**dict(EVALUATION), **fields})


def test_an_evaluation_that_never_runs_is_refused():
    with pytest.raises(ValueError, match="never runs"):
        study(EVALUATION.model_copy(update={"every": 4}))


# -- the price


def exact_epsilon(mu: float, delta: float) -> float:
    """ε of a Gaussian mechanism with sensitivity/σ = mu, exactly (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""

    def excess(epsilon: float) -> float:
        reach = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return float(reach - delta)

    return float(brentq(excess, 0.0, 80.0))


@pytest.mark.parametrize(("noise", "evaluated"), [(8.0, 1.0), (8.0, 3.0), (20.0, 6.0), (1000.0, 2.0)])
def test_the_price_is_that_of_composed_gaussians(noise: float, evaluated: float):
    """Without sampling everything is one Gaussian: squares of 1/σ add, training and evaluations alike."""
    agreed = study(
        EVALUATION.model_copy(update={"noise_multiplier": evaluated}), sample_rate=1.0, noise_multiplier=noise, rounds=5
    )
    found = plan_price(agreed.privacy)
    exact = exact_epsilon(math.sqrt(5 * 2 / noise**2 + 2 / evaluated**2), 1e-5)
    assert exact <= found.epsilon <= exact + 2e-3
    assert found.steps == 12


def test_renyi_losses_add_up_with_a_calculation_of_its_own():
    """Mironov et al. 2019: of one subsampled step by numerical integration, of the evaluation α/(2σ²)."""
    rate, noise, order = 0.1, 1.0, 6
    grid = np.linspace(-12, 18, 300_001)
    absent, present = norm.logpdf(grid, 0, noise), norm.logpdf(grid, 1, noise)
    mixture = np.logaddexp(math.log(1 - rate) + absent, math.log(rate) + present)
    step = math.log(np.trapezoid(np.exp(order * mixture + (1 - order) * absent), grid)) / (order - 1)
    runs = in_rounds(study().mechanism(SITES[0], 2), 3)
    assert renyi_loss(compose(runs), order) == pytest.approx(3 * 2 * step + order / (2 * 6.0**2), rel=1e-6)


def test_rdp_and_pld_agree_on_a_plan_and_the_evaluation_costs_something():
    agreed = study()
    alone, both = plan_price(study(None).privacy), plan_price(agreed.privacy)
    assert alone.epsilon < both.epsilon <= both.epsilon_rdp
    assert both.epsilon_replaced > both.epsilon


def test_the_plan_is_the_sum_of_its_rounds_records():
    """What the ledger reserves is what the audit trail's records come to, round by round."""
    agreed = study(spare_rounds=2, **QUICK)
    records = [agreed.mechanism(SITES[0], round_) for round_ in range(1, 6)]
    assert price(records, 1e-5) == plan_price(agreed.privacy)
    assert price(records[:3], 1e-5) == plan_price(agreed.privacy, 3)
    assert price(records[:1], 1e-5) == plan_price(study(None, **QUICK).privacy, 1)
    assert every_site_price(records, 1e-5, sites=3) == price_repeated([(record, 3) for record in records], 1e-5)


def test_rounds_that_began_are_charged_by_their_numbers():
    """A site that only ever takes part in even rounds pays for more than half as many evaluations."""
    record = study().mechanism(SITES[0], 2)
    steps = compose(in_rounds(record, 3, 3)).steps
    assert steps == {(0.1, 1.0): 6, (1.0, 6.0): 3}
    assert compose(in_rounds(record, 3)).steps == {(0.1, 1.0): 6, (1.0, 6.0): 1}


def test_noise_is_calibrated_beside_the_evaluation():
    noise = calibrate(4.0, 1e-5, 1.0, 20, {(1.0, 6.0): 4})
    every = EVALUATION.model_copy(update={"every": 1})

    def cost(found: float) -> float:
        plan = {"sample_rate": 1.0, "noise_multiplier": found, "steps_per_round": 5, "rounds": 4}
        return plan_price(study(every, **plan).privacy).epsilon

    assert cost(noise) <= 4.0 < cost(noise - 0.001)
    assert noise > calibrate(4.0, 1e-5, 1.0, 20)
    with pytest.raises(BudgetError, match="no noise multiplier"):
        calibrate(0.5, 1e-5, 1.0, 20, {(1.0, 1.0): 4})


# -- what the sums say


def test_the_example_of_the_specification():
    found = figures((602.1, -310.4, 401.9), EVALUATION, survivors=3)
    assert (round(found.accuracy or 0, 4), round(found.accuracy_error or 0, 4)) == (0.8337, 0.0180)
    assert (round(found.loss or 0, 4), round(found.loss_error or 0, 4)) == (0.9689, 0.0673)
    assert found.units_error == pytest.approx(18.0)
    assert str(found) == (
        "held-out accuracy 83.4% ± 1.8%, loss 0.969 ± 0.067 (noised; ± one standard deviation of the noise)"
    )


def test_the_errors_are_those_of_repeated_noise():
    rng, truth = np.random.default_rng(4), np.array([600.0, -310.0, 400.0])
    spread = noise_std(EVALUATION) * math.sqrt(3)
    drawn = [figures(tuple(truth + spread * rng.normal(size=3)), EVALUATION, survivors=3) for _ in range(4000)]
    accuracies, losses = (np.array([getattr(one, name) for one in drawn]) for name in ("accuracy", "loss"))
    told = figures(tuple(truth), EVALUATION, survivors=3)
    assert accuracies.mean() == pytest.approx((1 + 400 / 600) / 2, abs=2e-3)
    assert accuracies.std() == pytest.approx(told.accuracy_error, rel=0.06)
    assert losses.std() == pytest.approx(told.loss_error, rel=0.06)


def test_there_is_no_figure_where_noise_is_all_there_is():
    for count in (5 * 18.0 - 0.01, 0.0, -40.0):
        found = figures((count, 1.0, 2.0), EVALUATION, survivors=3)
        assert found.loss is None
        assert found.accuracy is None
        assert "larger than what" in str(found)
    assert figures((90.01, 1.0, 2.0), EVALUATION, survivors=3).accuracy is not None


def test_figures_stay_in_their_range():
    found = figures((100.0, -130.0, 120.0), EVALUATION, survivors=1)
    assert (found.loss, found.accuracy) == (0.0, 1.0)


def test_bounds_come_from_public_constants():
    assert noise_std(EVALUATION) == pytest.approx(6 * UNIT_NORM)
    assert bound(EVALUATION, 1000.0) == pytest.approx(4 * 200 + 10 * 6 * math.sqrt(3))
    assert bound(EVALUATION, 1.0) > 10 * noise_std(EVALUATION)


def test_a_ring_that_rounds_the_sums_too_coarsely_is_refused():
    fields = dict(study(sample_rate=1.0, divisor=1e6, steps_per_round=1))
    cohort = fields["cohort"].model_copy(update={"min_cohort": 3})
    masked = {"protection": UpdateProtection.SECAGG, "cohort": cohort}
    with pytest.raises(ValueError, match="ring u16 rounds the evaluation too coarsely"):
        Study(**{**fields, **masked, "secagg": SecureAggregation(threshold=3, ring="u16")})
    Study(**{**fields, **masked, "secagg": SecureAggregation(threshold=3)})
