"""The ledger as people and programs see it: what was spent, by which study, what is left, what would fit.

Rules.
- ε never stands alone: δ, unit, adjacency and accountant are fields beside it.
- Shares are fractions of a lifetime budget at its Rényi filter's order, and they add; ε of studies do not. A share of a
  budget that is too small for that order is infinite, and None here.
- Values only; nothing is read or printed here.

    >>> view = budget_view(ledger.history(), ledger.budget(cap_epsilon=8.0, cap_delta=1e-5), "patients")
    >>> view.left  # doctest: +SKIP
    0.55
"""

import math
from collections.abc import Sequence

from wardround_client.ledger_budget import Budget, Plan
from wardround_client.ledger_rows import RoundRow
from wardround_common.documents import Document
from wardround_common.errors import BudgetError
from wardround_common.privacy.accountant import price_repeated
from wardround_common.privacy.lifetime import lifetime
from wardround_common.privacy.mechanism import MechanismRecord, in_rounds

BAR_WIDTH = 30
"""Characters of a bar: fits beside the numbers on 80 columns."""

_BLOCKS = " ▏▎▍▌▋▊▉█"


class BudgetView(Document):
    """One lifetime budget. `reserved` includes `spent`; all three are shares of the cap, and `left` is what is free."""

    space: str
    cap_epsilon: float
    cap_delta: float
    renyi_order: int | None
    reserved: float | None
    spent: float | None
    left: float


class RoundView(Document):
    """One round that began, its share of its budget, and what was spent of that up to then."""

    study: str
    round: int
    space: str
    began_at: int  # seconds since 1970, UTC
    committed_at: int | None  # None: never answered, and spent all the same
    recovered: bool
    share: float | None
    spent: float | None


class PlanView(Document):
    """What a number of rounds of a proposed study would cost: `share` of the lifetime budget, `fits` beside the rest.

    An ε that no accountant gives, since it is too large to mean anything, is None.
    """

    rounds: int
    noise_multiplier: float
    epsilon: float | None
    epsilon_replaced: float | None
    epsilon_every_site: float | None
    share: float | None
    fits: bool


def budget_view(rounds: Sequence[RoundRow], budget: Budget, space: str) -> BudgetView:
    """Return one budget's state."""
    begun = [(row.mechanism, 1) for row in rounds if row.space == space]
    taken = budget.taken
    return BudgetView(
        space=space,
        cap_epsilon=budget.cap.epsilon,
        cap_delta=budget.cap.delta,
        renyi_order=budget.order,
        reserved=_finite(taken.used),
        spent=_finite(lifetime(begun, budget.cap, budget.order or 2).used),
        left=taken.left,
    )


def round_views(rounds: Sequence[RoundRow], budgets: dict[str, Budget]) -> tuple[RoundView, ...]:
    """Return every round that began, in that order, with what was spent of its budget up to then."""
    spent: dict[str, float] = {}
    views = []
    for row in rounds:
        budget = budgets[row.space]
        share = lifetime([(row.mechanism, 1)], budget.cap, budget.order or 2).used
        spent[row.space] = spent.get(row.space, 0.0) + share
        views.append(
            RoundView(
                study=row.name,
                round=row.round,
                space=row.space,
                began_at=row.began_at,
                committed_at=row.committed_at,
                recovered=row.recovered,
                share=_finite(share),
                spent=_finite(spent[row.space]),
            )
        )
    return tuple(views)


def plan_view(budget: Budget, plan: Plan, delta: float, *, sites: int) -> PlanView:
    """Return what `plan` would cost one unit at this site, and one that is at all `sites`."""
    record, rounds = plan
    runs = in_rounds(record, rounds)
    alone, everywhere = _price(runs, delta), _price([(one, times * sites) for one, times in runs], delta)
    return PlanView(
        rounds=rounds,
        noise_multiplier=record.noise_multiplier,
        epsilon=alone[0],
        epsilon_replaced=alone[1],
        epsilon_every_site=everywhere[0],
        share=_finite(budget.share(plan)),
        fits=budget.fits(plan),
    )


def bar(spent: float | None, reserved: float | None, width: int = BAR_WIDTH) -> str:
    """Return a bar of `width` characters: full blocks for what is spent, light ones for what is only reserved."""
    eighths = round(min(1.0 if spent is None else spent, 1.0) * width * 8)
    full = _BLOCKS[8] * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
    light = "░" * max(0, round(min(1.0 if reserved is None else reserved, 1.0) * width) - len(full))
    return (full + light).ljust(width, "·")


def _finite(share: float) -> float | None:
    return share if math.isfinite(share) else None


def _price(runs: Sequence[tuple[MechanismRecord, int]], delta: float) -> tuple[float | None, float | None]:
    if not any(times for _, times in runs):
        return 0.0, 0.0
    try:
        price = price_repeated(runs, delta)
    except BudgetError:
        return None, None
    return price.epsilon, price.epsilon_replaced
