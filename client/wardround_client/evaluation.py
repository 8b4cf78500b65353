"""A hospital's part in a charged evaluation: who is held out, and the noised sums that leave.

Rules (docs/spec/evaluation.md).
- Held-out units are never trained on. A unit's place follows from its own identity and a key that only this hospital
  has, so it depends on no other unit, is the same in every round, and nobody outside can choose or guess it.
- One unit moves the three sums by at most sqrt(3) in L2 norm, however many records it has and whatever the model
  says; a vector that is longer is scaled down, one that is not finite counts as zero. Nothing tells.
- The noise is added here, from the round's sealed seed, by a stream of its own; nothing before it is returned, stored
  or logged.
Not done here: forward passes (`scoring`), the price and what the sums say (`wardround_common.privacy`).

    >>> evaluator.sums(tensors, 5, seed)  # doctest: +SKIP
    array([ 201.7, -101.3,  130.2], dtype=float32)
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wardround_client.data.cohort import normal_form
from wardround_client.data.text import TextData
from wardround_client.randomness import KeystreamRandomness, Randomness
from wardround_common.privacy.evaluation import COORDINATES, UNIT_NORM, bound, noise_std
from wardround_common.privacy.mechanism import Evaluation
from wardround_common.study import Study

_NOISE = b"wardround/evaluation/1"
_BELOW_BOUND = 1 - 1e-6  # float32 and fixed point round; a vector at the bound must not be refused for that

Floats = NDArray[np.float64]
Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores:
    """How a model does on each record: [records] each. As private as the records."""

    losses: Floats  # nats
    correct: Floats  # share of what was right, 0 … 1
    usable: NDArray[np.bool_]


class Score(Protocol):
    """Scores an adapter on records (`scoring.torch_scores`)."""

    def __call__(self, tensors: Tensors) -> Scores:
        """Return each record's scores under the trained `tensors`."""


def split(data: TextData, identifiers: Sequence[str] | None, key: bytes, share: float) -> tuple[TextData, TextData]:
    """Return the records to train on and those that are held out, units whole.

    Args:
        data: all records.
        identifiers: whose record each is; None where every record is its own unit.
        key: 32 secret bytes, of this hospital and one study.
        share: of the units that are held out, on average.
    """
    below = int(share * 2.0**64)
    held = np.array([_place(identity, key) < below for identity in _identities(data, identifiers)], bool)
    return _part(data, ~held), _part(data, held)


def unit_vectors(scores: Scores, units: NDArray[np.int64], loss_bound: float) -> Floats:
    """Return what each unit adds before noise, [units, 3]: norms are at most sqrt(3).

    Args:
        scores: of every record.
        units: [records], unit index of each record.
        loss_bound: a larger loss counts as this.
    """
    count = int(units.max()) + 1 if len(units) else 0
    with np.errstate(all="ignore"):  # what is not finite is removed below
        losses = np.clip(scores.losses, 0.0, loss_bound) / loss_bound
        found = np.stack([np.ones_like(losses), 2 * losses - 1, 2 * scores.correct - 1], axis=1)
        found = np.where(scores.usable[:, None], found, 0.0)
        records = np.bincount(units, weights=scores.usable, minlength=count)
        totals = np.stack([np.bincount(units, weights=column, minlength=count) for column in found.T], axis=1)
        vectors = totals / np.maximum(records, 1.0)[:, None]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.where(norms > UNIT_NORM, vectors * (UNIT_NORM / norms), vectors)
    return np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)


def noised_sums(vectors: Floats, evaluation: Evaluation, largest: float, randomness: Randomness) -> Floats:
    """Return the sums over units with this hospital's noise, [3], none beyond `largest`.

    Args:
        vectors: [units, 3], from `unit_vectors`.
        evaluation: the study's.
        largest: bound of what leaves; larger sums are scaled down together.
        randomness: of this release, and used by nothing else.
    """
    sums: Floats = vectors.sum(axis=0) + noise_std(evaluation) * randomness.normal(COORDINATES)
    most, limit = float(np.abs(sums).max()), largest * _BELOW_BOUND
    return sums * (limit / most) if most > limit else sums


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates for one study at one site.

    Args:
        study: has an evaluation.
        units: unit of every held-out record.
        score: scores an adapter on the held-out records.
    """

    study: Study
    units: NDArray[np.int64] = field(repr=False)
    score: Score = field(repr=False)

    def sums(self, tensors: Tensors, round_: int, seed: bytes) -> NDArray[np.float32]:
        """Return the noised sums over the held-out units for the adapter that `round_` starts from, [3].

        In a round that does not evaluate: zeros, and nothing is computed.

        Args:
            tensors: that adapter.
            round_: 1-based.
            seed: the round's sealed seed.

        Raises:
            TrainingError: the model cannot be run.
        """
        evaluation = self.study.privacy.evaluation
        if evaluation is None or not evaluation.runs_in(round_):
            return np.zeros(COORDINATES, np.float32)
        vectors = unit_vectors(self.score(tensors), self.units, evaluation.loss_bound)
        largest = bound(evaluation, self.study.privacy.nominal_units)
        return noised_sums(vectors, evaluation, largest, noise_of(seed)).astype(np.float32)


def noise_of(seed: bytes) -> Randomness:
    """Return the evaluation's own randomness in a round with the sealed `seed`."""
    return KeystreamRandomness(hmac.digest(seed, _NOISE, hashlib.sha256))


def _identities(data: TextData, identifiers: Sequence[str] | None) -> list[bytes]:
    if identifiers is not None:
        return [b"patient\0" + normal_form(name).encode() for name in identifiers]
    answers = data.responses or tuple(str(label) for label in data.labels)
    return [f"record\0{text}\0{answer}".encode() for text, answer in zip(data.texts, answers, strict=True)]


def _place(identity: bytes, key: bytes) -> int:
    return int.from_bytes(hmac.digest(key, identity, hashlib.sha256)[:8], "big")


def _part(data: TextData, kept: NDArray[np.bool_]) -> TextData:
    units = np.unique(data.units[kept], return_inverse=True)[1].astype(np.int64)
    return replace(
        data,
        texts=tuple(compress(data.texts, kept)),
        labels=tuple(compress(data.labels, kept)),
        responses=tuple(compress(data.responses, kept)),
        units=units,
    )
