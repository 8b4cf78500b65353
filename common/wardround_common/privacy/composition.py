"""What ran, all records together: the one value that accountants price.

Rules.
- Composition adds steps: records with the same sample rate and noise multiplier become one entry,
  so twenty rounds cost the accountant as much time as one.
- An evaluation is one Gaussian release: a step with sample rate 1. It is charged beside the training although its
  units are held out: a unit is paid for as if it were in both, so nothing rests on how units were split.
- Nothing is skipped. An unknown kind, or records about different units or adjacencies, is refused.
- What no accountant here can price soundly or in bounded time is refused before any of them starts.
Not done here: prices (`accountant`), their second opinion (`crosscheck`), the cap over all studies (`lifetime`).

    >>> compose([(record, 20)]).steps  # 20 rounds of 6 steps
    {(0.05, 0.8): 120}
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from wardround_common.errors import BudgetError
from wardround_common.privacy.mechanism import Adjacency, EvaluatedGaussian, MechanismRecord, SubsampledGaussian, Unit

MAX_STEPS = 100_000
"""Real plans have 10² to 10⁴ steps. Up to here pricing takes about a second, at ten million a minute,
and an operator must not be able to keep a hospital busy for hours."""

MIN_NOISE_MULTIPLIER = 0.1
"""One unsampled step at 0.1 costs ε of about 90; below, the privacy loss distribution fills the memory."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Steps of the Poisson-subsampled Gaussian, by their two constants; an evaluation is a step, too.

    `steps` maps (sample rate, noise multiplier) to a number of steps; clipping norm and records per unit
    do not occur because the noise is relative to what one unit can add.
    """

    unit: Unit
    adjacency: Adjacency
    steps: Mapping[tuple[float, float], int]

    @property
    def total(self) -> int:
        """Number of steps of all kinds."""
        return sum(self.steps.values())


def compose(plans: Iterable[tuple[MechanismRecord, int]]) -> Composition:
    """Return what (record, times it ran) come to.

    Raises:
        BudgetError: unknown kind, mixed units or adjacencies, or beyond the module's limits.
        ValueError: nothing to compose, or a negative count (misuse).
    """
    found = [(_known(record), times) for record, times in plans if times]
    if not found or any(times < 0 for _, times in found):
        raise ValueError("compose needs at least one record and no negative count")
    _require_one_kind_of_claim([record for record, _ in found])
    steps: dict[tuple[float, float], int] = {}
    for record, times in found:
        for constants, count in _releases(record):
            steps[constants] = steps.get(constants, 0) + times * count
    return require_priceable(Composition(unit=found[0][0].unit, adjacency=found[0][0].adjacency, steps=steps))


def require_priceable(composition: Composition) -> Composition:
    """Return `composition` if it is within the module's limits.

    Raises:
        BudgetError: too many steps, or too little noise to mean anything.
    """
    if composition.total > MAX_STEPS:
        raise BudgetError(
            "plan-too-long",
            f"{composition.total} steps are more than the {MAX_STEPS} that are priced",
            next_step="plan fewer rounds or fewer steps in a round",
        )
    least = min(noise for _, noise in composition.steps)
    if least < MIN_NOISE_MULTIPLIER:
        raise BudgetError(
            "epsilon-not-meaningful",
            f"noise multiplier {least:g} is below {MIN_NOISE_MULTIPLIER}: it protects nobody",
            next_step="ask the operator for a study with more noise",
        )
    return composition


def _releases(record: MechanismRecord) -> Iterator[tuple[tuple[float, float], int]]:
    """Yield ((sample rate, noise multiplier), steps) of everything that `record` releases."""
    yield (record.sample_rate, record.noise_multiplier), record.steps
    if isinstance(record, EvaluatedGaussian):
        yield (1.0, record.evaluation.noise_multiplier), 1


def _known(record: object) -> MechanismRecord:
    if isinstance(record, SubsampledGaussian) and record.kind == "poisson-subsampled-gaussian":
        return record
    if isinstance(record, EvaluatedGaussian) and record.kind == "evaluated-poisson-subsampled-gaussian":
        return record
    raise BudgetError(
        "mechanism-unknown",
        f"no price is known for a mechanism of kind {getattr(record, 'kind', type(record).__name__)!r}",
        next_step="upgrade wardround: a mechanism that this version does not know is never skipped",
    )


def _require_one_kind_of_claim(records: list[MechanismRecord]) -> None:
    claims = sorted({(record.unit, record.adjacency) for record in records})
    if len(claims) > 1:
        listed = " and ".join(f"unit {unit}, {adjacency}" for unit, adjacency in claims)
        raise BudgetError(
            "mechanism-mixed",
            f"records about different neighbours have no common ε: {listed}",
            next_step="keep one unit of privacy for all studies on the same patients",
        )
