"""The cap over all studies at one site: a Rényi filter.

Rules.
- Studies are chosen one after the other, by people who saw what earlier ones released. Adding up their ε, or
  pricing all records at the end, is not sound then. A Rényi filter is: fix one order α before anything is
  released, and stop before the sum of Rényi losses at α passes the budget that the cap leaves there.
- α is chosen once, from the constants of the first study that is reserved (`best_order`), and then kept, also
  when a person changes the cap.
- A plan's share of the budget is a plain fraction, and shares add. People see shares ("45 % of the lifetime
  budget"); a study's own ε is `accountant`'s.
- A share is more careful than PLD: a first study that costs ε by PLD needs a cap of about 1.1 to 1.25 ε.
Not done here: what was reserved, and keeping α (the client's ledger). Nothing but `math` is used.

Sources: filters, and why prices of adaptively chosen studies do not add: Rogers, Roth, Ullman, Vadhan 2016 (arXiv
1605.08294); the Rényi filter at a fixed order: Feldman and Zrnic 2021 (arXiv 2008.11193), Lécuyer 2021 (arXiv
2103.01379); Rényi loss at whole orders: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.3; conversion:
Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), proposition 12.

    >>> cap = Cap(epsilon=10.0, delta=1e-5)
    >>> order = best_order((record, 20), cap)
    >>> lifetime([(record, 20)], cap, order).left  # of 1
    0.544
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wardround_common.privacy.composition import Composition, compose
from wardround_common.privacy.mechanism import MechanismRecord, in_rounds

ORDERS: tuple[int, ...] = (*range(2, 65), 76, 92, 110, 132, 159, 191, 229, 275, 330, 396, 475, 570, 684, 821, 985, 1182)
"""Whole orders up to about 1200: enough for caps from ε = 0.03 on; above ε = 30 the best order is 2."""


@dataclass(frozen=True, kw_only=True)
class Cap:
    """What all studies together may cost one unit at this site: (ε, δ)-DP, whatever is chosen when."""

    epsilon: float
    delta: float

    def budget(self, order: int) -> float:
        """Rényi loss at `order` that the cap allows; not positive where the cap is too small for that order."""
        return self.epsilon - _overhead(order, self.delta)


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """How much of a cap is taken, as a fraction of 1 (more than 1 where a cap was lowered afterwards)."""

    cap: Cap
    used: float

    @property
    def left(self) -> float:
        """The fraction that is free, at least 0."""
        return max(0.0, 1 - self.used)


def best_order(plan: tuple[MechanismRecord, int], cap: Cap) -> int:
    """Return the order at which `plan` takes the smallest share of `cap`: the filter's α if it is the first.

    Args:
        plan: a study: the record of a round, of one that evaluates if any does, and how many rounds.
        cap: over all studies.

    Raises:
        BudgetError: the mechanism cannot be priced (see `composition`).
    """
    composition = compose(in_rounds(*plan))
    return min(ORDERS, key=lambda order: _share(composition, cap, order))


def lifetime(plans: Sequence[tuple[MechanismRecord, int]], cap: Cap, order: int) -> Lifetime:
    """Return what (record, times reserved) take of `cap` at the filter's `order`; no plans take nothing.

    Raises:
        BudgetError: unknown mechanisms, mixed units or adjacencies (see `composition`).
    """
    taken = [plan for plan in plans if plan[1]]
    return Lifetime(cap=cap, used=_share(compose(taken), cap, order) if taken else 0.0)


def needed_epsilon(plans: Sequence[tuple[MechanismRecord, int]], delta: float, order: int) -> float:
    """Return the smallest cap ε at `delta` into which all plans fit at the filter's `order`.

    Raises:
        BudgetError: as `lifetime`.
    """
    return renyi_loss(compose(plans), order) + _overhead(order, delta)


def renyi_epsilon(composition: Composition, delta: float) -> float:
    """Return ε at `delta` by the best of `ORDERS`: quick, without SciPy, a little above `crosscheck.epsilon_rdp`."""
    return max(0.0, min(renyi_loss(composition, order) + _overhead(order, delta) for order in ORDERS))


def _share(composition: Composition, cap: Cap, order: int) -> float:
    budget = cap.budget(order)
    return renyi_loss(composition, order) / budget if budget > 0 else math.inf


def _overhead(order: int, delta: float) -> float:
    """What the conversion from Rényi loss at `order` to (ε, δ) adds to ε."""
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def renyi_loss(composition: Composition, order: int) -> float:
    """Return the Rényi differential privacy of `composition` at a whole `order` >= 2."""
    return sum(count * _one_step(rate, noise, order) for (rate, noise), count in composition.steps.items())


def _one_step(rate: float, noise: float, order: int) -> float:
    """Mironov et al.: log(sum_k C(α,k) (1-q)^(α-k) q^k exp((k² - k) / 2σ²)) / (α - 1)."""
    if rate == 1:
        return order / (2 * noise**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]
    top = max(terms)
    return max(0.0, (top + math.log(math.fsum(math.exp(term - top) for term in terms))) / (order - 1))
