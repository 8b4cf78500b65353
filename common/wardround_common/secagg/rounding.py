"""How fine the fixed point of a sum is, and how much its rounding adds to the noise.

Rules (docs/spec/secagg.md, rule 4 and "Rounding").
- The step follows from the bound, the number of members and the ring, and from nothing else.
- A study whose rounding would reach 1 % of the noise in any round is refused.
- Plain arithmetic: a reviewer's installation has no numpy, and reads studies too.
Not done here: rounding itself (`fixed`).

    >>> fraction_bits(1.0, members=3, bits=32)
    29
"""

import math

from wardround_common.adam import reach
from wardround_common.secagg.rules import BITS, RingName, Segment

MAX_FRACTION = 40
"""Steps of 2^-40 are finer than float32 can hold at any learning rate; bounds what is multiplied."""

MAX_ROUNDING_SHARE = 0.01
"""Rounding may add at most this share of the noise's standard deviation."""


def fraction_bits(bound: float, *, members: int, bits: int) -> int:
    """Return the largest f <= 40 for which `members` values of up to `bound` fit a ring of `bits` in steps of 2^-f.

    Raises:
        ValueError: none does.
    """
    top = 2 ** (bits - 1) - 1
    for fraction in range(MAX_FRACTION, -64, -1):
        if members * round(bound * 2.0**fraction) <= top:
            return fraction
    raise ValueError(f"values up to {bound:g} are too large to sum")


def rounding_share(segment: Segment, noise_std: float, *, members: int, bits: int) -> float:
    """Return the rounding error's standard deviation as a share of the noise's (for one update and for the mean)."""
    step = 2.0 ** -fraction_bits(segment.bound, members=members, bits=bits)
    return step / math.sqrt(12) / noise_std


def require_fine(*, steps: int, noise_std: float, members: int, ring: RingName) -> None:
    """Return if rounding adds less than `MAX_ROUNDING_SHARE` of the noise to every update.

    Args:
        steps: steps per round.
        noise_std: of the quietest round, in units of the learning rate (`adam.least_noise_std`).
        members: n.
        ring: of the sum.

    Raises:
        ValueError: it adds more: the ring is too small for so many members and steps.
    """
    share = rounding_share(Segment(length=1, bound=reach(steps)), noise_std, members=members, bits=BITS[ring])
    if share >= MAX_ROUNDING_SHARE:
        raise ValueError(
            f"ring {ring} rounds too coarsely for {members} members and {steps} steps per round: "
            f"{share:.1%} of the noise, where less than {MAX_ROUNDING_SHARE:.0%} is allowed; use u32"
        )
