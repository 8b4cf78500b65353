"""A second and a third opinion on a privacy loss: an upper and a lower bound.

Rules.
- `epsilon_rdp` is dp-accounting's Rényi accountant: another theory, hence an independent upper bound.
  An accountant that comes out above it is wrong, or too coarse for the plan.
- `epsilon_attacked` is what one concrete attack proves: the adversary adds up all noisy sums of a unit whose
  gradient is always +clip and compares with a threshold. An accountant that comes out *below* it is
  wrong in the dangerous direction. Only `math` is used, so no bug is shared with an accountant.
- `replaced=True` asks for the other neighbouring relation, one unit *replaced* by another: above, two steps of
  add-or-remove (group privacy); below, the same attack on a unit whose gradient is -clip instead of +clip.
Not done here: the price itself (`accountant`).

Sources: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530); δ(ε) ≥ P'(S > s) - e^ε P(S > s), the
definition of (ε, δ) for the event S > s.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wardround_common.privacy.composition import Composition

_SPARSE = (72, 96, 128, 192, 256, 384, 512, 768, 1024)
RDP_ORDERS = (*(1 + k / 8 for k in range(2, 88)), *range(12, 32), *range(32, 72, 4), *_SPARSE)
"""Dense where ε between 1 and 100 has its best order, then up to what ε of 0.01 needs."""

_THRESHOLDS = 48
_MEANINGFUL = 150.0  # ε above it is refused anyway, and its exponentials leave the range of floats
_LEFT_OUT = 1e-35  # bound on the weight of hits that the attack does not look at


@dataclass(frozen=True, kw_only=True)
class UpperBounds:
    """ε by the Rényi accountant, for both neighbouring relations; may be infinite."""

    epsilon: float
    replaced: float


def epsilon_rdp(composition: Composition, delta: float) -> UpperBounds:
    """Return what dp-accounting's Rényi accountant says at `delta`: upper bounds."""
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(RDP_ORDERS)
    with _without_order_warnings():
        for (rate, noise), count in composition.steps.items():
            event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
            accountant.compose(event, count)
        alone = float(accountant.get_epsilon(delta))
        twice = _twice(lambda epsilon: float(accountant.get_delta(epsilon)), alone, delta)
    return UpperBounds(epsilon=alone, replaced=twice)


def _twice(delta_at: Callable[[float], float], alone: float, delta: float) -> float:
    """Return the least 2ε with (1 + exp ε) δ(ε) <= delta, for two neighbours in a row (Vadhan 2017, lemma 2.2)."""
    low, high = alone, 4 * alone + 10
    if not alone < _MEANINGFUL or (1 + math.exp(high)) * delta_at(high) > delta:
        return math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if (1 + math.exp(middle)) * delta_at(middle) <= delta else (middle, high)
    return 2 * high


def epsilon_attacked(composition: Composition, delta: float, *, replaced: bool = False) -> float:
    """Return an ε that every correct accountant must reach or exceed (a lower bound, at least 0)."""
    return max(_attack_one(*constants, count, delta, replaced) for constants, count in composition.steps.items())


def _attack_one(rate: float, noise: float, count: int, delta: float, replaced: bool) -> float:
    """Return the best ε over thresholds s for S ~ N(hits, noise² count), hits ~ Binomial(count, rate).

    Against it stands S ~ N(0, …) without the unit, or N(-hits, …) where it was replaced.
    """
    spread = noise * math.sqrt(count)
    hits = list(_binomial(count, rate))
    best = 0.0
    for k in range(_THRESHOLDS):
        s = spread * (k / 4 - 2)
        present = sum(weight * _normal_above((s - n) / spread) for n, weight in hits)
        against = _normal_above(s / spread)
        if replaced:
            against = _LEFT_OUT + sum(weight * _normal_above((s + n) / spread) for n, weight in hits)
        if present > delta and against > 1e-290:
            best = max(best, math.log((present - delta) / against))
    return best


def _binomial(count: int, rate: float) -> Iterator[tuple[int, float]]:
    """Yield (hits, probability) but for less than `_LEFT_OUT` of all; what is left out only weakens the attack."""
    if rate == 1:
        yield count, 1.0
        return
    mean, half = count * rate, 20 * math.sqrt(count * rate * (1 - rate)) + 90  # Bernstein: beyond it 1e-36 at most
    for n in range(max(0, int(mean - half)), min(count, int(mean + half)) + 1):
        log_choose = math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1)
        weight = math.exp(log_choose + n * math.log(rate) + (count - n) * math.log1p(-rate))
        if weight > 1e-42:  # the others, at most 1e5 of them, weigh 1e-37
            yield n, weight


def _normal_above(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


@contextmanager
def _without_order_warnings() -> Iterator[None]:
    """Silence one message: a fractional order whose series does not converge is left out, which is sound."""

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("_compute_log_a_frac failed to converge")

    logger = logging.getLogger("absl")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
