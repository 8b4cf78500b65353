"""Fixed point: float updates as ring elements, and the opened sum as their mean.

Rules (docs/spec/secagg.md, rules 3 to 7). This is the only definition of rounding: a plain sum of
encoded updates and a masked one give the same mean, bit for bit, in any order.
- Steps are powers of two per tensor, as fine as n members' bounds allow in the ring.
- Values are rounded to the nearest step and limited to the bound, which an honest update never meets.
- Four sentinels at each end must count the survivors; every value must lie within u times the bound.
Not done here: bounds (from the study), masks.

    >>> point = FixedPoint(rules.segments, members=3, ring="u32")
    >>> total = point.encode(update_a) + point.encode(update_b)
    >>> point.mean(total, survivors=2)
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wardround_common.errors import VerificationError
from wardround_common.secagg.masks import RingVector
from wardround_common.secagg.rounding import fraction_bits
from wardround_common.secagg.rules import BITS, SENTINELS, RingName, Segment

_PIECE = 1 << 16  # values converted at a time, so that float64 copies stay in the cache


class FixedPoint:
    """Encodes updates of one study and decodes their sum.

    Args:
        segments: the update's tensors, in their order.
        members: n, of the whole study: the most updates that a sum may hold.
        ring: of the sum.

    Raises:
        ValueError: a bound is so large that n members' sums do not fit the ring.
    """

    def __init__(self, segments: Sequence[Segment], *, members: int, ring: RingName) -> None:
        self._segments = tuple(segments)
        self.parameters = sum(segment.length for segment in segments)
        bits = BITS[ring]
        self._unsigned = np.dtype(f"<u{bits // 8}")
        self._signed = np.dtype(f"<i{bits // 8}")
        self._fractions = tuple(fraction_bits(s.bound, members=members, bits=bits) for s in segments)

    def encode(self, values: NDArray[np.float32]) -> RingVector:
        """Return the vector of an update: [length] ring elements, sentinels included.

        Args:
            values: [parameters] float32, segments one after the other.

        Raises:
            ValueError: another length, or NaN or infinity (misuse: training checks that).
        """
        if values.shape != (self.parameters,):
            raise ValueError(f"an update has {self.parameters} values")
        out = np.empty(self.parameters + 2 * SENTINELS, self._unsigned)
        out[:SENTINELS] = out[-SENTINELS:] = 0
        signed = out.view(self._signed)
        for first, last, steps in self._steps(0, values):
            np.copyto(signed[SENTINELS + first : SENTINELS + last], steps, casting="unsafe")  # whole numbers that fit
        self.count(out)
        return out

    def count(self, total: RingVector) -> None:
        """Count one more update in the sentinels of `total`."""
        total[:SENTINELS] += 1
        total[-SENTINELS:] += 1

    def add(self, total: RingVector, start: int, values: NDArray[np.float32]) -> None:
        """Add a piece of an update, the float32 `values` of the parameters from `start` on, to `total` in place.

        Raises:
            ValueError: NaN or infinity (misuse: training checks that); pieces before it were added.
        """
        signed = total.view(self._signed)
        for first, last, steps in self._steps(start, values):
            signed[SENTINELS + first : SENTINELS + last] += steps.astype(self._signed)

    def mean(self, total: RingVector, *, survivors: int) -> NDArray[np.float32]:
        """Return the mean of `survivors` updates from their opened sum, [parameters] float32; raises as `means`."""
        return np.concatenate(list(self.means(total, survivors=survivors)))

    def means(self, total: RingVector, *, survivors: int) -> Iterator[NDArray[np.float32]]:
        """Return the mean of `survivors` updates from their opened sum, in pieces of float32, checked before the first.

        Raises:
            VerificationError: the sentinels do not count the survivors, or a value is beyond its bound.
        """
        signed = total.view(self._signed)
        ends = np.concatenate([signed[:SENTINELS], signed[-SENTINELS:]])
        if not np.all(ends == survivors):
            raise VerificationError(
                "secagg-sum-garbled",
                "the opened sum is garbled: a member masked with other secrets than it shared, it cannot be told which",
                next_step="the round failed and its ε stays spent; ask every member to check its installation",
            )
        values = signed[SENTINELS:-SENTINELS]
        for first, last, _, limit in self._pieces():
            if np.abs(values[first:last].astype(np.float64)).max() > survivors * limit:
                raise VerificationError(
                    "secagg-sum-out-of-range",
                    "the opened sum lies beyond what honest updates can reach; it cannot be told whose fault it is",
                    next_step="the round failed and its ε stays spent; ask every member to check its installation",
                )
        return (
            (values[first:last].astype(np.float64) / scale / survivors).astype(np.float32)
            for first, last, scale, _ in self._pieces()
        )

    def rounding_std(self) -> tuple[float, ...]:
        """Return the standard deviation of one member's rounding error, per segment: step / sqrt(12)."""
        return tuple(2.0**-fraction / math.sqrt(12) for fraction in self._fractions)

    def _steps(self, start: int, values: NDArray[np.float32]) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Yield (first, last, whole numbers of steps) of the `values` from parameter `start` on; one array, reused."""
        room = np.empty(min(_PIECE, values.size))
        for first, last, scale, limit in self._pieces(start, start + values.size):
            piece, steps = values[first - start : last - start], room[: last - first]
            if not np.isfinite(piece).all():
                raise ValueError("an update holds NaN or infinity")
            np.multiply(piece, scale, out=steps)
            np.rint(steps, out=steps)
            np.clip(steps, -limit, limit, out=steps)
            yield first, last, steps

    def _pieces(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int, np.float64, float]]:
        """Yield (first, last, 2^f, limit) of cache-sized pieces of the parameters from `begin` to `end`."""
        start, end = 0, self.parameters if end is None else end
        for segment, fraction in zip(self._segments, self._fractions, strict=True):
            scale = np.float64(2.0**fraction)
            limit = float(np.rint(segment.bound * scale))
            stop = min(start + segment.length, end)
            for first in range(max(start, begin), stop, _PIECE):
                yield first, min(first + _PIECE, stop), scale, limit
            start += segment.length
