"""The equal-weight mean of updates that the server may see, exact and independent of their order.

Rules.
- The fixed point is that of secure aggregation (docs/spec/secagg.md, "Numbers"): the same updates give
  the same mean, bit for bit, sealed or masked.
- Every value must lie within what an honest Adam run can reach (`updates.update_bound`); larger ones are refused.
- Weights are equal: sizes of cohorts never enter.

    >>> segment = Segment(length=1, bound=1.0)
    >>> mean = MeanUpdate(specs=(TensorSpec(name="w", shape=(1,)),), segments=(segment,), members=2)
    >>> mean.add({"w": np.array([0.5], np.float32)}); mean.add({"w": np.array([0.25], np.float32)})
    >>> mean.value()["w"]
    array([0.375], dtype=float32)
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wardround_common.adapter import TensorSpec
from wardround_common.errors import VerificationError
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.rules import Segment
from wardround_common.updates import join, split

Tensors = Mapping[str, npt.NDArray[np.float32]]


class MeanUpdate:
    """Running sum of updates; memory is one model, whatever the number of hospitals.

    Args:
        specs: names and shapes of the update's tensors.
        segments: their lengths and largest absolute values, in the same order.
        members: n, of the whole study.
    """

    def __init__(self, *, specs: Sequence[TensorSpec], segments: Sequence[Segment], members: int) -> None:
        self._specs = tuple(specs)
        self._bounds = {spec.name: segment.bound for spec, segment in zip(specs, segments, strict=True)}
        self._point = FixedPoint(segments, members=members, ring="u32")
        self._total: npt.NDArray[np.unsignedinteger] | None = None
        self.count = 0

    def add(self, tensors: Tensors) -> None:
        """Add one update (float32 tensors with the names and shapes of `specs`).

        Raises:
            VerificationError: a value is out of range; nothing was added.
        """
        if tensors.keys() != self._bounds.keys():
            raise ValueError("decode_tensors must check names and shapes first")
        for name, tensor in tensors.items():
            if not np.all(np.abs(tensor) <= self._bounds[name]):
                raise VerificationError(
                    "update-out-of-range",
                    f"an update holds values beyond {self._bounds[name]:g} in {name}",
                    next_step="the site is excluded from this round; ask it to check its installation",
                )
        encoded = self._point.encode(join(tensors, self._specs))
        self._total = encoded if self._total is None else np.add(self._total, encoded, out=self._total)
        self.count += 1

    def value(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the mean, float32."""
        if self._total is None:
            raise ValueError("no update was added")
        return split(self._point.mean(self._total, survivors=self.count), self._specs)


def apply_update(adapter: Tensors, update: Tensors) -> dict[str, npt.NDArray[np.float32]]:
    """Return `adapter + update`, tensor by tensor."""
    return {name: tensor + update[name] for name, tensor in adapter.items()}
