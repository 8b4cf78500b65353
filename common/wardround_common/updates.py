"""The update of a round as one vector: the order of its tensors and how large an honest one can be.

Rules.
- Tensors lie in the adapter's order (names sorted), each flat; a study with an evaluation adds its three noised sums
  as one more tensor, `EVALUATION`, whose name sorts last (docs/spec/evaluation.md). Nothing else is in the vector.
- Bounds follow from the study alone, so every side computes the same steps of fixed point from them.
- A value beyond its bound cannot come from an honest Adam run; the bound is a theorem, not a guess.
Not done here: fixed point and masks (`secagg`), transport.

    >>> specs = (TensorSpec(name="w", shape=(2,)),)
    >>> join({"w": np.zeros(2, np.float32)}, specs).shape
    (2,)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wardround_common.adam import reach
from wardround_common.adapter import TensorSpec
from wardround_common.privacy.evaluation import COORDINATES, bound
from wardround_common.secagg.rules import Rules, Segment
from wardround_common.study import Study

EVALUATION = TensorSpec(name="evaluation", shape=(COORDINATES,))
"""An evaluation's noised sums in an update; the adapter's names begin with `adapter.PREFIX` and sort before it."""


def update_specs(study: Study, trained: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return names and shapes of everything in an update, given those of the trained tensors."""
    return (*trained, EVALUATION) if study.privacy.evaluation is not None else tuple(trained)


def update_bound(study: Study) -> Callable[[str], float]:
    """Return the largest absolute value that an honest update may hold, by tensor name."""
    moves, evaluation = reach(study.privacy.steps_per_round), study.privacy.evaluation

    def largest(name: str) -> float:
        if evaluation is not None and name == EVALUATION.name:
            return bound(evaluation, study.privacy.nominal_units)
        rate = study.optimiser.adapter_rate if ".lora_" in name else study.optimiser.head_rate
        return moves * rate

    return largest


def segments(study: Study, trained: Sequence[TensorSpec]) -> tuple[Segment, ...]:
    """Return length and bound of every tensor of an update, in order, given the trained tensors."""
    largest = update_bound(study)
    return tuple(Segment(length=spec.size, bound=largest(spec.name)) for spec in update_specs(study, trained))


def secagg_rules(study: Study, trained: Sequence[TensorSpec]) -> Rules:
    """Return what both sides of secure aggregation know before the first message, given the trained tensors.

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
        segments=segments(study, trained),
    )


def adapter_part(
    pieces: Iterable[NDArray[np.float32]], parameters: int, rest: list[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Yield the first `parameters` values of an update that comes in pieces, and put what follows into `rest`."""
    for values in pieces:
        yield values[:parameters]
        if values.size > parameters:
            rest.append(values[parameters:].copy())  # a view, even an empty one, would keep its whole piece in memory
        parameters -= min(parameters, values.size)


def join(tensors: Mapping[str, NDArray[np.float32]], specs: Sequence[TensorSpec]) -> NDArray[np.float32]:
    """Return the tensors as one vector, [parameters] float32."""
    return np.concatenate([tensors[spec.name].ravel() for spec in specs]).astype(np.float32, copy=False)


def split(values: NDArray[np.float32], specs: Sequence[TensorSpec]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a vector of [parameters] float32; the inverse of `join`."""
    ends = np.cumsum([spec.size for spec in specs])[:-1]
    return {spec.name: piece.reshape(spec.shape) for spec, piece in zip(specs, np.split(values, ends), strict=True)}
