"""The equal-weight mean of updates that the server may see, exact and independent of their order.

Rules.
- The fixed point is that of secure aggregation (docs/spec/secagg.md, "Numbers"): the same updates give
  the same mean, bit for bit, sealed or masked.
- Every value must lie within what an honest Adam run can reach (`updates.update_bound`); larger ones are refused.
- Weights are equal: sizes of cohorts never enter.
- One sum is kept in memory, and pieces: an update is read once, and once more to take it out if it does not hold.

    >>> mean = MeanUpdate((Segment(length=1, bound=1.0),), members=2)
    >>> for value in (0.5, 0.25):
    ...     mean.add(lambda: [np.array([value], np.float32)])
    >>> list(mean.value())
    [array([0.375], dtype=float32)]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from wardround_common.adapter import TensorSpec, read_values, write_values
from wardround_common.errors import StorageError, VerificationError
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.rules import SENTINELS, Segment

Pieces = Iterable[npt.NDArray[np.float32]]
"""An update's values in the adapter's order, [values] float32 at a time."""

_READ = 1 << 18
"""Bytes of an adapter read at a time."""


class MeanUpdate:
    """Running sum of updates; memory is one model, whatever the number of hospitals.

    Args:
        segments: length and largest absolute value of every tensor, in the adapter's order.
        members: n, of the whole study.
    """

    def __init__(self, segments: Sequence[Segment], *, members: int) -> None:
        ends = np.cumsum([segment.length for segment in segments]).tolist()
        self._bounds = [(end - s.length, end, np.float32(s.bound)) for end, s in zip(ends, segments, strict=True)]
        self._point = FixedPoint(segments, members=members, ring="u32")
        self._total = np.zeros(self._point.parameters + 2 * SENTINELS, "<u4")
        self.count = 0

    def add(self, read: Callable[[], Pieces]) -> None:
        """Add one update; `read` is called once more, and must give the same pieces, if the update does not hold.

        Raises:
            VerificationError: a value is out of range, or `read` raised it; nothing was added.
            StorageError: what had been added cannot be read again: this sum cannot be used any more.
        """
        taken = 0
        try:
            for values in read():
                self._require_range(values, taken)
                self._point.add(self._total, taken, values)
                taken += values.size
            if taken != self._point.parameters:
                raise ValueError("an update is read to its end and has the study's length")
        except Exception:
            self._take_back(read, taken)
            raise
        self._point.count(self._total)
        self.count += 1

    def _take_back(self, read: Callable[[], Pieces], taken: int) -> None:
        """Subtract the first `taken` values again; integers modulo the ring come out as they were."""
        start = 0
        try:
            for values in _first(read(), taken):
                self._point.add(self._total, start, -values)
                start += values.size
        except Exception:  # whatever it was, a part of the update is in the sum
            start = -1
        if start != taken:
            raise StorageError(
                "update-changed-on-disk",
                "an update that does not hold cannot be read again to take it out: its file changed, the sum is spoilt",
                next_step="check the disk, then start the server again: the round is added up anew",
            ) from None

    def _require_range(self, values: npt.NDArray[np.float32], start: int) -> None:
        """Return if `values`, those of the parameters from `start` on, keep to their tensors' bounds."""
        for first, last, bound in self._bounds:
            part = values[max(first - start, 0) : max(last - start, 0)]
            if part.size and not np.abs(part).max() <= bound:  # written so that NaN is refused too
                raise VerificationError(
                    "update-out-of-range",
                    "an update holds values beyond what an honest run of the study can reach",
                    next_step="the site is excluded from this round; ask it to check its installation",
                )

    def value(self) -> Iterator[npt.NDArray[np.float32]]:
        """Return the mean in pieces of float32."""
        if not self.count:
            raise ValueError("no update was added")
        return self._point.means(self._total, survivors=self.count)


def _first(pieces: Pieces, count: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the first `count` values of `pieces`."""
    source, left = iter(pieces), count
    while left > 0 and (values := next(source, None)) is not None:
        yield values[:left]
        left -= values.size


def apply_update(adapter: BinaryIO, update: Pieces, specs: tuple[TensorSpec, ...]) -> Iterator[bytes]:
    """Yield the encoding of `adapter + update`, of which only pieces are in memory.

    Args:
        adapter: the encoding of the adapter that the round started from.
        update: the mean.
        specs: names and shapes of both.

    Raises:
        VerificationError: `adapter` is not of these specs.
    """
    before = _blocks(read_values(iter(lambda: adapter.read(_READ), b""), specs))
    return write_values((before(values.size) + values for values in update), specs)


def _blocks(pieces: Iterator[npt.NDArray[np.float32]]) -> Callable[[int], npt.NDArray[np.float32]]:
    """Return a function that takes the next so many values from `pieces`."""
    held = np.empty(0, np.float32)

    def take(count: int) -> npt.NDArray[np.float32]:
        nonlocal held
        while held.size < count:
            held = np.concatenate([held, next(pieces)])
        taken, held = held[:count], held[count:]
        return taken

    return take
