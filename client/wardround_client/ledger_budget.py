"""Room in a lifetime budget: what is taken, what a plan would take, how much of it fits, what is missing.

Rules.
- One budget for one space of patient identifiers, `DEFAULT_SPACE` unless a person declared otherwise (`spaces`).
- Shares are fractions of the cap at the Rényi filter's order (`privacy.lifetime`); before the first reservation the
  order is the one that suits the plan best, and it is kept from then on.
- Values only: what is reserved is handed in by the ledger.

    >>> budget = Budget(cap=Cap(epsilon=8.0, delta=1e-5), plans=(), order=None)
    >>> budget.rounds_that_fit((record, 30))  # doctest: +SKIP
    30
"""

import math
from dataclasses import dataclass

from wardround_common.errors import BudgetError
from wardround_common.privacy.composition import MAX_STEPS, MIN_NOISE_MULTIPLIER, compose
from wardround_common.privacy.lifetime import Cap, Lifetime, best_order, lifetime, needed_epsilon, renyi_epsilon
from wardround_common.privacy.mechanism import MechanismRecord, in_rounds
from wardround_common.study import MAX_ROUNDS, Study

DEFAULT_SPACE = "patients"
"""All data sets of a hospital that nobody declared to be about other patients."""

Plan = tuple[MechanismRecord, int]
"""A study: the record of a round, of one that evaluates if any does, and how many rounds, from the first on."""

Runs = tuple[MechanismRecord, int]
"""What ran, or may run: a record, and how often exactly that."""

_STEPS = 10_000  # noise multipliers are looked for in steps of 1/10,000
_MOST_NOISE = 1000


def plan_of(study: Study) -> Plan:
    """The record of one round (its site does not matter: all run the same) and how often it may run."""
    return study.fullest(), study.privacy.rounds + study.privacy.spare_rounds


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A cap with what is reserved of it.

    Args:
        cap: the policy's lifetime budget.
        plans: what is reserved; of studies that have ended, what was spent.
        order: the filter's order, None before the first reservation.
    """

    cap: Cap
    plans: tuple[Runs, ...]
    order: int | None

    @property
    def taken(self) -> Lifetime:
        """What all reservations take."""
        return lifetime(self.plans, self.cap, self.order or 2)

    def share(self, plan: Plan) -> float:
        """Return the fraction of the cap that `plan` takes by itself.

        Raises:
            BudgetError: the plan cannot be priced.
        """
        return lifetime(in_rounds(*plan), self.cap, self.order_for(plan)).used

    def order_for(self, plan: Plan) -> int:
        """Return the filter's order if `plan` is reserved next."""
        return self.order or best_order(plan, self.cap)

    def fits(self, plan: Plan) -> bool:
        """Return whether `plan` fits beside all reservations."""
        return lifetime([*self.plans, *in_rounds(*plan)], self.cap, self.order_for(plan)).used <= 1

    def rounds_that_fit(self, plan: Plan) -> int:
        """Return how many rounds like `plan`'s fit beside all reservations, at most the largest plan that exists."""
        record, _ = plan
        order, taken = self.order_for(plan), compose(self.plans).total if self.plans else 0
        longest = compose([(record, 1)]).total  # steps of a round that evaluates: at least any other's
        low, high = 0, min(MAX_ROUNDS, max(0, MAX_STEPS - taken) // longest) + 1
        while high - low > 1:
            middle = (low + high) // 2
            used = lifetime([*self.plans, *in_rounds(record, middle)], self.cap, order).used
            low, high = (middle, high) if used <= 1 else (low, middle)
        return low

    def noise_that_fits(self, plan: Plan) -> float | None:
        """Return the least noise of training, in steps of 0.0001, at which the whole plan fits; None if none does."""
        record, times = plan

        def fits(step: int) -> bool:
            return self.fits((record.model_copy(update={"noise_multiplier": step / _STEPS}), times))

        low, high = math.ceil(MIN_NOISE_MULTIPLIER * _STEPS) - 1, _MOST_NOISE * _STEPS
        if not fits(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high / _STEPS

    def require(self, name: str, plan: Plan) -> int:
        """Return the filter's order if `plan` of the study `name` fits.

        Raises:
            BudgetError: it does not; says how much is missing and what would fit.
        """
        if self.fits(plan):
            return self.order_for(plan)
        needed, left = self.share(plan), self.taken.left
        raise BudgetError(
            "budget-insufficient",
            f"study {name} needs {percent(needed)} of the lifetime budget "
            f"(ε = {self.cap.epsilon:g} at δ = {self.cap.delta:g} per {plan[0].unit}); "
            f"{percent(left)} is left, {percent(needed - left)} is missing",
            next_step=f"ask the operator for at most {self.rounds_that_fit(plan)} rounds instead of {plan[1]}; "
            f"with lifetime_epsilon {self._enough(plan):.2f} it would fit",
        )

    def _enough(self, plan: Plan) -> float:
        """Return a cap ε, rounded up to two decimals, into which all plans fit."""
        plans, delta = [*self.plans, *in_rounds(*plan)], self.cap.delta
        epsilon = needed_epsilon(plans, delta, self.order) if self.order else renyi_epsilon(compose(plans), delta)
        return math.ceil(epsilon * 100) / 100


def percent(share: float | None) -> str:
    """Return a share of a budget as people read it; None is beyond any."""
    return f"{share:.1%}" if share is not None and share < 10 else "over 1000%"
