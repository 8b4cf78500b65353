"""A study's evaluation on patients: what is added up, how far it can reach, and what it says.

Rules (docs/spec/evaluation.md).
- Of each held-out unit u three numbers are added up: 1, 2 l(u) - 1 and 2 a(u) - 1. l(u) is the mean over u's usable
  records of the loss, limited to [0, loss_bound] and divided by it; a(u) the mean of what was right, 0 … 1. All lie in
  [-1, 1], so adding or removing a unit moves the sums by at most sqrt(3), however many records it has.
- The number of units is one of the three sums: it is private, so it is noised like the others; nothing is divided by a
  count, at the hospital or elsewhere, that was not noised.
- Gaussian noise of noise_multiplier x sqrt(3) stands in each sum before it leaves. Afterwards a vector beyond `bound`
  is scaled down as a whole, which keeps its ratios.
- Loss and accuracy are ratios of noisy sums. Where the noise is not far below the noisy count there is no figure.
Plain arithmetic: a reviewer's installation has no numpy. Not done here: forward passes and noise (the hospital's
`evaluation`), ε (`accountant`).

    >>> figures((602.1, -310.4, 401.9), evaluation, survivors=3).accuracy  # doctest: +SKIP
    0.834
"""

import math
from dataclasses import dataclass

from wardround_common.privacy.mechanism import Evaluation
from wardround_common.secagg.rounding import MAX_ROUNDING_SHARE, rounding_share
from wardround_common.secagg.rules import BITS, RingName, Segment

COORDINATES = 3
"""Number of units, loss, correctness."""

UNIT_NORM = math.sqrt(COORDINATES)
"""L2 bound of what one unit adds: three coordinates of at most 1."""

_ROOM_UNITS = 4  # a hospital of four times the nominal size is not scaled down
_ROOM_NOISE = 10  # nor is one whose noise is not beyond ten standard deviations
_LEAST_SIGNAL = 5.0  # noise deviations that the noisy count must have: a ratio's error formula needs that

Sums = tuple[float, float, float]
"""Noised sums over held-out units: of 1, of 2 l - 1, of 2 a - 1."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What noised sums say; errors are one standard deviation of the noise, and of nothing else.

    `units` is the number of held-out units of all survivors. The other figures are None where the noise is too large
    beside the units: less than five standard deviations.
    """

    units: float
    units_error: float
    loss: float | None  # nats; each record's limited to loss_bound
    loss_error: float | None
    accuracy: float | None  # 0 … 1
    accuracy_error: float | None

    def __str__(self) -> str:
        if self.loss is None or self.accuracy is None:
            return "held-out loss and accuracy: the noise is larger than what so few held-out units can show"
        return (
            f"held-out accuracy {self.accuracy:.1%} ± {self.accuracy_error:.1%}, loss {self.loss:.3f} ± "
            f"{self.loss_error:.3f} (noised; ± one standard deviation of the noise)"
        )


def noise_std(evaluation: Evaluation) -> float:
    """Return the standard deviation of one hospital's noise in each sum, in units."""
    return evaluation.noise_multiplier * UNIT_NORM


def bound(evaluation: Evaluation, nominal_units: float) -> float:
    """Return the largest absolute value of a sum that leaves a hospital; `nominal_units` is the study's public size."""
    return _ROOM_UNITS * max(1.0, evaluation.held_out * nominal_units) + _ROOM_NOISE * noise_std(evaluation)


def figures(sums: Sums, evaluation: Evaluation, *, survivors: int) -> Figures:
    """Return what the noised `sums` of so many hospitals say.

    The errors are the delta method's for a ratio x/n of sums with independent noise of equal variance t²:
    t / n · sqrt(1 + (x/n)²); rounding and scaled-down vectors do not count.
    """
    count, noise = sums[0], noise_std(evaluation) * math.sqrt(survivors)
    if count < _LEAST_SIGNAL * noise:
        return Figures(units=count, units_error=noise, loss=None, loss_error=None, accuracy=None, accuracy_error=None)
    (loss, loss_error), (accuracy, accuracy_error) = (_share(value, count, noise) for value in sums[1:])
    return Figures(
        units=count,
        units_error=noise,
        loss=evaluation.loss_bound * loss,
        loss_error=evaluation.loss_bound * loss_error,
        accuracy=accuracy,
        accuracy_error=accuracy_error,
    )


def require_fine_evaluation(evaluation: Evaluation, nominal_units: float, *, members: int, ring: RingName) -> None:
    """Return if rounding adds less than 1 % of the noise to what leaves a hospital.

    Raises:
        ValueError: the ring is too small for so many members and units.
    """
    segment = Segment(length=COORDINATES, bound=bound(evaluation, nominal_units))
    share = rounding_share(segment, noise_std(evaluation), members=members, bits=BITS[ring])
    if share >= MAX_ROUNDING_SHARE:
        raise ValueError(
            f"ring {ring} rounds the evaluation too coarsely for {members} members: {share:.1%} of the noise, "
            f"where less than {MAX_ROUNDING_SHARE:.0%} is allowed; use u32, or a smaller nominal_size"
        )


def _share(value: float, count: float, noise: float) -> tuple[float, float]:
    """Return (1 + value / count) / 2, limited to [0, 1], and its standard error."""
    ratio = value / count
    return min(1.0, max(0.0, (1 + ratio) / 2)), noise / (2 * count) * math.hypot(1, ratio)
