"""An attack on the real step, many times over: it proves less than the claimed ε, and more once a bug is planted.

The attacker sees every released sum and looks along the canary's own gradient. From how often it is right with and
without the canary follows a lower bound on ε that holds with 95 % confidence (Jagielski et al. 2020, arXiv 2006.07709;
Clopper-Pearson intervals). δ is 0.01 so that a thousand runs can say something.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import nn

from wardround_client.randomness import KeystreamRandomness
from wardround_client.training import dpsgd
from wardround_client.training.dpsgd import PrivateStep
from wardround_client.training.fused import attach
from wardround_client.training.sampling import draw, group_units
from wardround_client.training.tokens import Batch
from wardround_common.privacy.accountant import price
from wardround_common.privacy.mechanism import SubsampledGaussian

DELTA, RUNS, NOISE = 0.01, 1000, 1.0
THRESHOLDS = (1.3, 3.5)  # in clip norms, fixed beforehand; the confidence is shared between them


class OneLayer(nn.Module):
    """A network of one linear layer: what `PrivateStep` needs of `Network`, fast enough for thousands of steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.recorder = attach(self)
        self.trained = {"layer": self.layer.weight}
        self.device = torch.device("cpu")

    def forward(self, hidden, lengths, starts):
        return self.layer(hidden)


class Site:
    """Ten records of nine ordinary patients, and a canary patient with `records` records in their own direction."""

    def __init__(self, *, canary, records=1):
        rng = np.random.default_rng(0)
        rows = [np.concatenate([[0.0], rng.standard_normal(5)]) for _ in range(10)]
        units = [0, 0, *range(1, 9)]
        if canary:
            rows += [np.array([30.0, 0, 0, 0, 0, 0])] * records
            units += [9] * records
        self.features = torch.tensor(np.array(rows), dtype=torch.float32)
        self.groups = group_units(np.array(units))


def released(site, step, network, sample_rate, randomness, sampler):
    """Take one step and return what is released along the canary's gradient, in clip norms."""
    drawn = sampler(site.groups, sample_rate, 4, randomness)
    if drawn:
        records = np.concatenate(drawn)
        owners = np.repeat(np.arange(len(drawn)), [len(d) for d in drawn])
        ones = torch.ones(len(records), dtype=torch.int64)
        batch = Batch(ids=ones[:, None], lengths=ones, starts=0 * ones, labels=0 * ones)
        usable = torch.ones(len(records), dtype=torch.bool)
        step.add(site.features[records], batch, usable, torch.from_numpy(owners), len(drawn), True)
    step.finish(randomness)
    column = network.layer.weight.grad[:, 0]
    return float(column[1] - column[0]) / math.sqrt(2)  # the canary's gradient is 30 * (-1/2, 1/2) there


def observations(*, canary, sample_rate=1.0, records=1, sampler=draw):
    site, network = Site(canary=canary, records=records), OneLayer()
    step = PrivateStep(network, clip_norm=1.0, noise_multiplier=NOISE, divisor=1.0)
    randomness = KeystreamRandomness(bytes([canary]) * 32)
    return np.array([released(site, step, network, sample_rate, randomness, sampler) for _ in range(RUNS)])


def proven_epsilon(**options):
    """Return the largest ε that the two sets of observations refute, at 95 % confidence."""
    without, with_canary = observations(canary=False, **options), observations(canary=True, **options)
    alpha, best = 0.05 / (2 * len(THRESHOLDS)), 0.0
    for threshold in THRESHOLDS:
        false_positives, true_positives = int((without > threshold).sum()), int((with_canary > threshold).sum())
        at_most = beta.ppf(1 - alpha, false_positives + 1, RUNS - false_positives)
        at_least = beta.ppf(alpha, true_positives, RUNS - true_positives + 1) if true_positives else 0.0
        if at_least > DELTA:
            best = max(best, math.log((at_least - DELTA) / at_most))
    return best


def claimed_epsilon(sample_rate, steps, noise=NOISE):
    record = SubsampledGaussian(
        study="sha256:" + "0" * 64,
        site="here",
        round=1,
        unit="patient",
        adjacency="add-or-remove-one",
        sample_rate=sample_rate,
        noise_multiplier=noise,
        clip_norm=1.0,
        steps=steps,
        records_per_unit=4,
    )
    return price([record], DELTA).epsilon


def test_what_is_proven_stays_below_the_claim():
    proven, claimed = proven_epsilon(records=4), claimed_epsilon(1.0, 1)
    assert 0.5 < proven < claimed < 3.0  # not vacuous: the attack does see something


def test_poisson_sampling_stays_below_its_much_smaller_claim():
    assert proven_epsilon(sample_rate=0.1) < claimed_epsilon(0.1, 10) < 1.0


def test_half_the_noise_is_caught(monkeypatch):
    honest = KeystreamRandomness.normal
    monkeypatch.setattr(KeystreamRandomness, "normal", lambda self, n: 0.5 * honest(self, n))
    assert proven_epsilon() > claimed_epsilon(1.0, 1)


def test_missing_clipping_is_caught(monkeypatch):
    monkeypatch.setattr(PrivateStep, "_clip", lambda self, gradients: [g.sum(0) for g in gradients])
    assert proven_epsilon() > claimed_epsilon(1.0, 1)


def test_clipping_records_instead_of_patients_is_caught(monkeypatch):
    honest = dpsgd._per_unit
    monkeypatch.setattr(
        dpsgd, "_per_unit", lambda g, usable, owners, units: honest(g, usable, torch.arange(len(g)), len(g))
    )
    assert proven_epsilon(records=4) > claimed_epsilon(1.0, 1)


def test_batches_in_a_fixed_order_with_the_price_of_poisson_are_caught():
    """Once in ten steps, always in the same one: the attacker looks there."""

    def in_order(groups, sample_rate, records_per_unit, randomness):
        return [group for place, group in enumerate(groups) if place % 10 == 9]

    assert proven_epsilon(sample_rate=0.1, sampler=in_order) > claimed_epsilon(0.1, 10)


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_the_price_moves_with_the_noise(factor):
    """The audit's yardstick itself: more noise, smaller claim."""
    assert (claimed_epsilon(1.0, 1, factor * NOISE) < claimed_epsilon(1.0, 1)) is (factor > 1)
