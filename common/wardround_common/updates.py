"""The update of a round as one vector: the order of its tensors and how large an honest one can be.

Rules.
- Tensors lie in the adapter's order (names sorted), each flat; nothing else is in the vector.
- Bounds follow from the study alone, so every side computes the same steps of fixed point from them.
- A value beyond its bound cannot come from an honest Adam run; the bound is a theorem, not a guess.
Not done here: fixed point and masks (`secagg`), transport.

    >>> specs = (TensorSpec(name="w", shape=(2,)),)
    >>> join({"w": np.zeros(2, np.float32)}, specs).shape
    (2,)
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wardround_common.adam import reach
from wardround_common.adapter import TensorSpec
from wardround_common.secagg.rules import Rules, Segment
from wardround_common.study import Study


def update_bound(study: Study) -> Callable[[str], float]:
    """Return the largest absolute value that an honest update may hold, by tensor name."""
    moves = reach(study.privacy.steps_per_round)

    def bound(name: str) -> float:
        rate = study.optimiser.adapter_rate if ".lora_" in name else study.optimiser.head_rate
        return moves * rate

    return bound


def segments(study: Study, specs: Sequence[TensorSpec]) -> tuple[Segment, ...]:
    """Return length and bound of every tensor, in order."""
    bound = update_bound(study)
    return tuple(Segment(length=spec.size, bound=bound(spec.name)) for spec in specs)


def secagg_rules(study: Study, specs: Sequence[TensorSpec]) -> Rules:
    """Return what both sides of secure aggregation know before the first message.

    Raises:
        ValueError: the study is not under secure aggregation (misuse).
    """
    if study.secagg is None:
        raise ValueError("the study's updates are not masked")
    members = study.cohort.members
    return Rules(
        study=study.sha256(),
        names=tuple(member.name for member in members),
        identities=tuple(member.identity for member in members),
        server=study.server.identity,
        colluders=study.cohort.colluders,
        threshold=study.secagg.threshold,
        min_cohort=study.cohort.min_cohort,
        ring=study.secagg.ring,
        segments=segments(study, specs),
    )


def join(tensors: Mapping[str, NDArray[np.float32]], specs: Sequence[TensorSpec]) -> NDArray[np.float32]:
    """Return the tensors as one vector, [parameters] float32."""
    return np.concatenate([tensors[spec.name].ravel() for spec in specs]).astype(np.float32, copy=False)


def split(values: NDArray[np.float32], specs: Sequence[TensorSpec]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a vector of [parameters] float32; the inverse of `join`."""
    ends = np.cumsum([spec.size for spec in specs])[:-1]
    return {spec.name: piece.reshape(spec.shape) for spec, piece in zip(specs, np.split(values, ends), strict=True)}
