"""The equal-weight mean of updates, exact and independent of their order.

Rules.
- Values are added as 64-bit integers in steps of 2^-32, so the sum does not depend on who answered
  first and a repeated round gives the same bytes. This is also the seam where masked ring sums go in.
- Every value must lie within what an honest Adam run can reach (`ADAM_STEP`); larger ones are
  refused, so the sum of 100 updates cannot overflow.
- Weights are equal: sizes of cohorts never enter.

    >>> mean = MeanUpdate(specs=(TensorSpec(name="w", shape=(1,)),), bound=lambda name: 1.0)
    >>> mean.add({"w": np.array([0.5], np.float32)}); mean.add({"w": np.array([0.25], np.float32)})
    >>> mean.value()["w"]
    array([0.375], dtype=float32)
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from wardround_common.adapter import TensorSpec
from wardround_common.errors import VerificationError
from wardround_common.study import MAX_MEMBERS, Study

Tensors = Mapping[str, npt.NDArray[np.float32]]

FRACTION_BITS = 32
"""Steps of 2^-32 are 2,000 times finer than float32's step at 1.0 and leave room for the sum."""

MAX_BOUND = float(2 ** (62 - FRACTION_BITS) / MAX_MEMBERS)
"""No study may allow values whose sum over 100 members could leave the 64-bit range."""

ADAM_STEP = (1 - 0.9) / ((1 - 0.999) * (1 - 0.9**2 / 0.999)) ** 0.5
"""Largest move of one parameter in one Adam step, in units of the learning rate: |m| / sqrt(v) by the
Cauchy-Schwarz inequality over the weights (1-b1) b1^i and (1-b2) b2^i of past gradients; the bias
correction only shrinks it. About 7.3, more than the single-spike case of Kingma & Ba (2015, 2.1)."""

ROUNDING_SLACK = 1.01
"""Adam's epsilon, bias correction and float32 rounding stay far below one per cent."""


def update_bound(study: Study) -> Callable[[str], float]:
    """Return the largest absolute value that an honest update may hold, by tensor name."""
    steps = study.privacy.steps_per_round

    def bound(name: str) -> float:
        rate = study.optimiser.adapter_rate if ".lora_" in name else study.optimiser.head_rate
        return min(MAX_BOUND, steps * rate * ADAM_STEP * ROUNDING_SLACK)

    return bound


class MeanUpdate:
    """Running sum of updates; memory is one model, whatever the number of hospitals.

    Args:
        specs: names and shapes of the update's tensors.
        bound: largest absolute value allowed in the tensor of that name.
    """

    def __init__(self, *, specs: tuple[TensorSpec, ...], bound: Callable[[str], float]) -> None:
        self._sums = {spec.name: np.zeros(spec.shape, np.int64) for spec in specs}
        self._bound = bound
        self.count = 0

    def add(self, tensors: Tensors) -> None:
        """Add one update (float32 tensors with the names and shapes of `specs`).

        Raises:
            VerificationError: a value is out of range; nothing was added.
        """
        if tensors.keys() != self._sums.keys():
            raise ValueError("decode_tensors must check names and shapes first")
        for name, tensor in tensors.items():
            if not np.all(np.abs(tensor) <= self._bound(name)):
                raise VerificationError(
                    "update-out-of-range",
                    f"an update holds values beyond {self._bound(name):g} in {name}",
                    next_step="the site is excluded from this round; ask it to check its installation",
                )
        for name, tensor in tensors.items():
            self._sums[name] += np.rint(np.ldexp(tensor.astype(np.float64), FRACTION_BITS)).astype(np.int64)
        self.count += 1

    def value(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the mean, float32."""
        if not self.count:
            raise ValueError("no update was added")
        return {
            name: np.ldexp(total.astype(np.float64) / self.count, -FRACTION_BITS).astype(np.float32)
            for name, total in self._sums.items()
        }


def apply_update(adapter: Tensors, update: Tensors) -> dict[str, npt.NDArray[np.float32]]:
    """Return `adapter + update`, tensor by tensor."""
    return {name: tensor + update[name] for name, tensor in adapter.items()}
