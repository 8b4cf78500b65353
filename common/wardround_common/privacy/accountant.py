"""The price of mechanism records: ε at δ.

Rules.
- Record first, price later: only records (or a plan of them) are priced, and what is priced is what ran.
- The price is dp-accounting's privacy loss distribution with pessimistic rounding, rounded up to four
  decimals. It must lie between `crosscheck`'s lower and upper bound, or there is no price at all.
- A price always carries δ, unit, adjacency and accountant; ε alone means nothing.
- dp-accounting (with SciPy) is imported on first use: it takes over a second, and the daemon's commit path
  and the command line's help do not need it. torch and flwr are never imported.
Not done here: the cap over all studies (`lifetime`), what is left of it (the client's ledger).

Source: privacy loss distributions, Koskela, Jälkö, Honkela 2020 (arXiv 1906.03049), as dp-accounting has them.

    >>> price([record] * 3, delta=1e-5).epsilon  # 3 rounds of 6 steps, sample rate 0.05, noise multiplier 0.8
    3.2885
"""

import importlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version

from wardround_common.errors import BudgetError, PolicyError
from wardround_common.privacy.composition import MIN_NOISE_MULTIPLIER, Composition, compose, require_priceable
from wardround_common.privacy.crosscheck import epsilon_attacked, epsilon_rdp
from wardround_common.privacy.lifetime import renyi_epsilon
from wardround_common.privacy.mechanism import Adjacency, MechanismRecord, Unit
from wardround_common.process import give_back_memory
from wardround_common.study import Privacy

MAX_EPSILON = 100.0
"""A larger ε by the Rényi accountant is refused instead of priced: it protects nobody, and the privacy
loss distribution of such a plan takes gigabytes."""

RDP_SLACK = 0.03
"""PLD may exceed RDP by so much: its losses are rounded up to the grid. Largest seen with 10⁵ steps: 0.022, all
where ε is below 0.04."""

ATTACK_SLACK = 1e-3
"""PLD may fall short of a proven attack by so much: rounding of floats, far below what is displayed."""

Beside = Mapping[tuple[float, float], int]
"""What runs beside the calibrated steps, as in `Composition.steps`."""

_KEPT_TRANSFORMS = 16  # of each kind, by pocketfft (`CACHE_SIZE` in its source)
_GRIDS = (1e-3, 1e-4)
_DECIMALS = 10_000
_FLOOR = int(MIN_NOISE_MULTIPLIER * _DECIMALS)
_CEILING = 1000 * _DECIMALS  # the mechanism record's own limit


@dataclass(frozen=True, kw_only=True)
class Price:
    """What records cost one unit at one site.

    `epsilon` holds at `delta` for neighbours by `adjacency`; `epsilon_rdp` is the second opinion.
    `epsilon_replaced` is the same mechanism's ε at `delta` where one unit is replaced by another, a stronger claim
    that some papers and laws mean by ε: it is larger, and shown beside the first.
    """

    epsilon: float
    epsilon_replaced: float
    delta: float
    unit: Unit
    adjacency: Adjacency
    accountant: str
    epsilon_rdp: float
    steps: int

    def __str__(self) -> str:
        return (
            f"ε = {self.epsilon:g} at δ = {self.delta:g} per {self.unit} at this site "
            f"({self.adjacency}; {self.accountant}; {self.steps} steps; RDP: {self.epsilon_rdp:.4g}; "
            f"replace-one: {self.epsilon_replaced:g})"
        )


def price(records: Sequence[MechanismRecord], delta: float) -> Price:
    """Return the price of `records` together, each run once.

    Raises:
        BudgetError: a record cannot be priced, or the accountants disagree.
        ValueError: no records, or δ outside (0, 1) (misuse).
    """
    return price_repeated([(record, 1) for record in records], delta)


def price_repeated(plans: Iterable[tuple[MechanismRecord, int]], delta: float) -> Price:
    """Return the price of (record, times it ran) together; see `price`."""
    return _price(compose(plans), delta)


def plan_price(privacy: Privacy, rounds: int | None = None) -> Price:
    """Return the price of the first `rounds` rounds of a study; by default its whole plan with the spare rounds.

    Raises:
        BudgetError: as `price`.
    """
    times = privacy.rounds + privacy.spare_rounds if rounds is None else rounds
    return price_repeated(privacy.in_rounds(times), privacy.delta)


def every_site_price(records: Sequence[MechanismRecord], delta: float, *, sites: int) -> Price:
    """Return the worst case for a unit that is present at every one of `sites` sites, each running `records`.

    Raises:
        BudgetError: as `price`.
    """
    return price_repeated([(record, sites) for record in records], delta)


def check_claim(privacy: Privacy) -> Price:
    """Return the whole plan's price if the study claims at least that much.

    Raises:
        PolicyError: the study promises a smaller ε than its constants give.
        BudgetError: as `price`.
    """
    found = plan_price(privacy)
    if found.epsilon > privacy.epsilon:
        raise PolicyError(
            "study-epsilon-too-small",
            f"the study claims ε = {privacy.epsilon:g}, but its plan costs {found}",
            next_step="do not approve it; ask the operator to correct epsilon, rounds or noise_multiplier",
        )
    return found


def calibrate(epsilon: float, delta: float, sample_rate: float, steps: int, beside: Beside | None = None) -> float:
    """Return the least noise multiplier, in steps of 0.0001, at which `steps` steps cost at most `epsilon`.

    Args:
        epsilon: what everything together may cost, at `delta`.
        delta: of that price.
        sample_rate: of the steps whose noise is wanted.
        steps: how many of them there are.
        beside: what else runs: (sample rate, noise multiplier) to a number of steps.

    Raises:
        BudgetError: no noise multiplier up to 1000 gives that.
    """

    def plan(noise: float) -> Composition:
        found = dict(beside or {})
        found[sample_rate, noise] = found.get((sample_rate, noise), 0) + steps
        return Composition(unit="record", adjacency="add-or-remove-one", steps=found)

    @cache
    def cost(grid_point: int) -> float:
        composition = plan(grid_point / _DECIMALS)
        upper = renyi_epsilon(require_priceable(composition), delta)  # the quick bound: a dozen costs are asked for
        return upper if upper > MAX_EPSILON else _epsilon_pld(composition, delta, upper)

    target = math.floor(epsilon * _DECIMALS + 1e-9) / _DECIMALS  # prices are rounded up
    low, high = _bracket(cost, target, _first_guess(lambda noise: renyi_epsilon(plan(noise), delta), epsilon))
    return _least(cost, target, low, high) / _DECIMALS


_pricing = threading.Lock()  # threads that ask for one price at the same time wait for it, instead of each computing it


def _price(composition: Composition, delta: float) -> Price:
    with _pricing:
        return _price_once(composition.unit, composition.adjacency, tuple(sorted(composition.steps.items())), delta)


@lru_cache(maxsize=256)  # a daemon's status asks for the same price again and again
def _price_once(
    unit: Unit, adjacency: Adjacency, steps: tuple[tuple[tuple[float, float], int], ...], delta: float
) -> Price:
    composition = Composition(unit=unit, adjacency=adjacency, steps=dict(steps))
    upper = epsilon_rdp(composition, delta)
    if not upper.epsilon <= MAX_EPSILON:
        raise BudgetError(
            "epsilon-not-meaningful",
            f"the plan's ε is about {upper.epsilon:.3g}, above {MAX_EPSILON:g}: it protects nobody",
            next_step="ask the operator for a study with more noise or fewer rounds",
        )
    epsilon = _checked(composition, delta, upper.epsilon)
    replaced = _checked(composition, delta, upper.replaced, replaced=True)
    _forget_transforms()
    return Price(
        epsilon=epsilon,
        epsilon_replaced=replaced,
        delta=delta,
        unit=composition.unit,
        adjacency=composition.adjacency,
        accountant=f"PLD (dp-accounting {_library_version()})",
        epsilon_rdp=upper.epsilon,
        steps=composition.total,
    )


def _checked(composition: Composition, delta: float, upper: float, *, replaced: bool = False) -> float:
    """Return PLD's ε, rounded up, if it lies between the attack and `upper`."""
    epsilon = _epsilon_pld(composition, delta, upper, replaced=replaced)
    lower = epsilon_attacked(composition, delta, replaced=replaced)
    if not (math.isfinite(epsilon) and lower - ATTACK_SLACK <= epsilon <= upper + RDP_SLACK):
        raise BudgetError(
            "accounting-disagrees",
            f"PLD says ε = {epsilon:.4g}, which is not between {lower:.4g} (attack) and {upper:.4g} (RDP)",
            next_step="do not run the study; report this plan, one of the accountants is wrong",
        )
    return math.ceil(epsilon * _DECIMALS) / _DECIMALS


def _epsilon_pld(composition: Composition, delta: float, upper: float, *, replaced: bool = False) -> float:
    """Return ε on the coarse grid, or on the fine one where the coarse grid's rounding shows."""
    epsilon = math.inf
    for grid in _GRIDS:
        epsilon = _epsilon_on_grid(composition, delta, grid, replaced)
        if epsilon <= upper:
            break
    return epsilon


def _epsilon_on_grid(composition: Composition, delta: float, grid: float, replaced: bool) -> float:
    import dp_accounting
    from dp_accounting import pld

    relations = dp_accounting.NeighboringRelation
    relation = relations.REPLACE_ONE if replaced else relations.ADD_OR_REMOVE_ONE
    accountant = pld.PLDAccountant(neighboring_relation=relation, value_discretization_interval=grid)
    for (rate, noise), count in composition.steps.items():
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def _forget_transforms() -> None:
    """Drop the tables that SciPy's FFT keeps for the last lengths, megabytes each; every number of steps has its own.

    They cannot be asked to go, but short lengths take their places. A daemon prices once a round, for months.
    """
    fft = importlib.import_module("scipy.fft")  # SciPy has no types

    for length in range(2, 2 + 2 * _KEPT_TRANSFORMS):
        fft.irfft(fft.rfft([0.0] * length))
        fft.ifft(fft.fft([0.0] * length))
    give_back_memory()


def _first_guess(quick_cost: Callable[[float], float], epsilon: float) -> int:
    """Return the grid point that the quick Rényi bound asks for; PLD needs a little less noise."""
    low, high = _FLOOR, _CEILING
    while high > 1.01 * low:
        middle = math.isqrt(low * high)
        low, high = (middle, high) if quick_cost(middle / _DECIMALS) > epsilon else (low, middle)
    return high


def _bracket(cost: Callable[[int], float], epsilon: float, guess: int) -> tuple[int, int]:
    """Return grid points (too little noise, enough noise) near `guess`."""
    high = guess
    while cost(high) > epsilon:
        if high == _CEILING:
            raise BudgetError(
                "epsilon-unreachable",
                f"no noise multiplier up to {_CEILING / _DECIMALS:g} brings the plan to ε = {epsilon:g}",
                next_step="allow a larger epsilon, or plan fewer steps",
            )
        high = min(high * 5 // 4, _CEILING)
    low = high
    while cost(low) <= epsilon:
        if low == _FLOOR:
            return _FLOOR - 1, _FLOOR
        high, low = low, max(low * 4 // 5, _FLOOR)
    return low, high


def _least(cost: Callable[[int], float], epsilon: float, low: int, high: int) -> int:
    """Return the least grid point with cost <= epsilon, given cost(low) > epsilon >= cost(high).

    Interpolates logarithms, as ε is nearly a power of the noise; every third step halves the interval instead.
    """
    for turn in itertools.count(1):
        if high - low == 1:
            return high
        guess = (low + high) // 2
        if turn % 3 and cost(high) > 0:
            above, below = math.log(cost(low) / epsilon), math.log(epsilon / cost(high))
            guess = min(max(math.ceil(low * (high / low) ** (above / (above + below))), low + 1), high - 1)
        low, high = (guess, high) if cost(guess) > epsilon else (low, guess)
    raise AssertionError


@cache
def _library_version() -> str:
    return version("dp-accounting")
