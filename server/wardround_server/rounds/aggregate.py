"""The equal-weight mean of updates that the server may see, exact and independent of their order.

Rules.
- The fixed point is that of secure aggregation (docs/spec/secagg.md, "Numbers"): the same updates give
  the same mean, bit for bit, sealed or masked.
- Every value must lie within what an honest Adam run can reach (`updates.update_bound`); larger ones are refused.
- Weights are equal: sizes of cohorts never enter.
- One sum is kept in memory, and pieces: an update is read twice, first to check it, then to add it.

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
        self._segments = tuple(segments)
        self._point = FixedPoint(segments, members=members, ring="u32")
        self._total = np.zeros(self._point.parameters + 2 * SENTINELS, "<u4")
        self.count = 0

    def add(self, read: Callable[[], Pieces]) -> None:
        """Add one update; `read` is called twice and must give the same pieces.

        Raises:
            VerificationError: a value is out of range, or `read` raised it; nothing was added.
            StorageError: the second reading failed: this sum cannot be used any more.
        """
        bounds = np.array([segment.bound for segment in self._segments], np.float32)
        ends = np.cumsum([segment.length for segment in self._segments])
        start = 0
        for values in read():
            self._require_range(values, start, ends, bounds)
            start += values.size
        if start != self._point.parameters:
            raise ValueError("an update is read to its end and has the study's length")
        start = 0
        try:
            for values in read():
                self._point.add(self._total, start, values)
                start += values.size
        except Exception:  # whatever it was, a part of the update is in the sum
            raise StorageError(
                "update-changed-on-disk",
                "an update held when it was checked and not when it was added: its file changed, the sum is spoilt",
                next_step="check the disk, then start the server again: the round is added up anew",
            ) from None
        self._point.count(self._total)
        self.count += 1

    def _require_range(
        self, values: npt.NDArray[np.float32], start: int, ends: npt.NDArray[np.int64], bounds: npt.NDArray[np.float32]
    ) -> None:
        which = np.searchsorted(ends, np.arange(start, start + values.size), side="right")
        if not np.all(np.abs(values) <= bounds[which]):
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
