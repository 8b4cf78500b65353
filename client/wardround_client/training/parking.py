"""A round parked between two steps, so that a killed or failed one goes on where it was.

Rules (docs/spec/envelope.md, "A parked round").
- What is parked is noised already: the trained tensors, Adam's moments, how many steps are done and how much of the
  round's keystream they took. No gradient, no drawn record, no key of the keystream.
- It is bound to what the round starts from and to the records: after a withdrawn consent or another file the round
  starts again from its seed, so no step with the old records counts.
- What cannot be read, or belongs to something else, is ignored: the seed alone decides the round.
Not done here: when to park and where it is kept (`wardround_client.parking`).

    >>> parked = Parked(binding=bytes(32), steps=3, position=96, tensors={}, optimiser=state)
    >>> Parked.from_bytes(parked.to_bytes(), bytes(32), specs) == parked  # doctest: +SKIP
    True
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wardround_client.randomness import Randomness
from wardround_client.training.network import Network
from wardround_client.training.optimiser import Adam
from wardround_client.training.tokens import Ints, Tokens
from wardround_common.adapter import Tensors, TensorSpec, decode_tensors, encode_tensors
from wardround_common.errors import VerificationError

_HEAD = struct.Struct("<32sQQ")  # binding, steps, position


class Parking(Protocol):
    """Where one round is parked."""

    def found(self) -> bytes | None:
        """Return what was parked, or None."""

    def keep(self, parked: Callable[[], bytes]) -> None:
        """Keep what `parked` returns, if it is time to; called after every step."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Parked:
    """A round between two steps."""

    binding: bytes  # 32 bytes (`binding`)
    steps: int  # done, at least 1
    position: int  # bytes of the round's keystream that they took
    tensors: Tensors  # the trained tensors after them, float32
    optimiser: Tensors  # Adam's state after them

    def to_bytes(self) -> bytes:
        """Return the parked round as bytes (docs/spec/envelope.md)."""
        values = {"p/" + name: value for name, value in self.tensors.items()}
        return _HEAD.pack(self.binding, self.steps, self.position) + encode_tensors(values | self.optimiser)

    @classmethod
    def from_bytes(cls, data: bytes, wanted: bytes, specs: tuple[TensorSpec, ...]) -> "Parked | None":
        """Return the parked round, or None if it is not one of the round that `wanted` stands for.

        Args:
            data: what `to_bytes` gave, or anything.
            wanted: the binding of the round that goes on.
            specs: the trained tensors.
        """
        if len(data) < _HEAD.size:
            return None
        binding, steps, position = _HEAD.unpack_from(data)
        if binding != wanted:
            return None
        state = [TensorSpec(name=f"{kind}/{spec.name}", shape=spec.shape) for spec in specs for kind in "pmv"]
        try:
            values = decode_tensors(data[_HEAD.size :], (*state, TensorSpec(name="step", shape=(1,))))
        except VerificationError:
            return None
        tensors = {spec.name: values.pop("p/" + spec.name) for spec in specs}
        return cls(binding=binding, steps=steps, position=position, tensors=tensors, optimiser=values)


@dataclass(frozen=True)
class Park:
    """Parks one round of one network, and takes it up again.

    Args:
        network, adam, randomness: what a step changes.
        parking: where it is kept; None parks nothing.
        binding: returns what the round is bound to.
    """

    network: Network
    adam: Adam
    randomness: Randomness
    parking: Parking | None
    binding: Callable[[], bytes]

    def resume(self, steps: int) -> int:
        """Go back to where the round was parked, and return how many of its `steps` are done."""
        found = self.parking.found() if self.parking is not None else None
        parked = found and Parked.from_bytes(found, self.binding(), self.network.layout.trained)
        if not parked or parked.steps > steps:
            return 0
        self.network.set_tensors(parked.tensors)
        self.adam.load(parked.optimiser)
        self.randomness.seek(parked.position)
        return parked.steps

    def keep(self, steps: int) -> None:
        """Let the round be parked after so many steps."""
        if self.parking is not None:
            self.parking.keep(lambda: self._parked(steps).to_bytes())

    def _parked(self, steps: int) -> Parked:
        return Parked(
            binding=self.binding(),
            steps=steps,
            position=self.randomness.position,
            tensors=self.network.trained_tensors(),
            optimiser=self.adam.state(),
        )


def binding(tensors: Tensors, optimiser_state: bytes | None, round_: int, tokens: Tokens, units: Ints) -> bytes:
    """Return 32 bytes that stand for what a round starts from and for the records that it draws from.

    Args:
        tensors: the global tensors.
        optimiser_state: Adam's state before the round.
        round_: its number.
        tokens: all records.
        units: the unit (record or patient) of each record, [records].
    """
    digest = hashlib.blake2b(struct.pack("<Q", round_), digest_size=32, person=b"wr parked round")
    for part in (encode_tensors(tensors), optimiser_state or b""):
        digest.update(struct.pack("<Q", len(part)) + part)
    for array in (tokens.ids, tokens.offsets, tokens.labels, tokens.starts, tokens.usable, units):
        digest.update(struct.pack("<Q", array.nbytes))
        digest.update(array.data)
    return digest.digest()
