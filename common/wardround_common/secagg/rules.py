"""The parameters of secure aggregation: from the co-signed study, never from a message.

Rules (docs/spec/secagg.md, rules 1 and 2).
- n >= 3, 2t > n + c, min_cohort >= max(t, c + 2): with less, a server that lies about who survived could
  reach an update, or too small a sum.
- The graph is complete: everybody masks with everybody, up to 100 members. `degree` gives a regular
  graph for simulations of more; it is drawn from the round's keys, which a last comer could grind.

    >>> check_thresholds(n=5, colluders=1, threshold=4, min_cohort=4)
    >>> may_vanish(n=5, threshold=4, min_cohort=4)
    1
"""

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Literal

from wardround_common.documents import Document

RingName = Literal["u32", "u16"]

MAX_POINTS = 255
"""Non-zero points of GF(2^8): more members than that cannot hold shares of one secret. Kept here, since a reviewer's
tool reads studies and needs no array library for that."""

BITS: dict[RingName, int] = {"u32": 32, "u16": 16}

SENTINELS = 4
"""Elements 1 at each end of a vector; a wrong mask passes all eight with probability 2^-128 in a ring of 16 bits."""


class SecureAggregation(Document):
    """The study's choice of parameters (`study.secagg`)."""

    threshold: int  # t: shares that open a mask
    ring: RingName = "u32"
    keep_vectors: bool = False  # the server keeps masked vectors and openings, for a reviewer to recompute the sums


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One tensor of the update."""

    length: int  # elements
    bound: float  # largest absolute value that an honest update can hold


def check_thresholds(*, n: int, colluders: int, threshold: int, min_cohort: int) -> None:
    """Return if the numbers protect single updates.

    Raises:
        ValueError: with the reason, in words for whoever writes a study.
    """
    if n < 3:
        raise ValueError(
            "secure aggregation needs three members: of two, each learns the other's update by subtracting its own"
        )
    if not 2 * threshold > n + colluders or threshold > n:
        raise ValueError(f"threshold t must satisfy 2t > n + c and t <= n (n={n}, c={colluders})")
    if not max(threshold, colluders + 2) <= min_cohort <= n:
        raise ValueError(f"min_cohort must lie between max(t, c + 2) and n (n={n}, c={colluders}, t={threshold})")


def default_threshold(n: int, colluders: int) -> int:
    """Return the smallest t that `check_thresholds` allows."""
    return (n + colluders) // 2 + 1


def may_vanish(*, n: int, threshold: int, min_cohort: int) -> int:
    """Return how many members may drop out of a round without stopping it."""
    return n - max(threshold, min_cohort)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Everything that both sides know before the first message.

    Args:
        study: the study's digest.
        names: members in the study's order.
        identities: their `ed25519:` keys, in the same order.
        server: `ed25519:` key of the operator, which signs survivor sets.
        colluders: the study's.
        threshold: the study's.
        min_cohort: the study's.
        ring: the study's.
        segments: the update's tensors, in their order.
        degree: None for the complete graph; else neighbours of each member, even (simulation only).

    Raises:
        ValueError: the numbers do not protect (see `check_thresholds`), or cannot be computed with.
    """

    study: str
    names: tuple[str, ...]
    identities: tuple[str, ...]
    server: str
    colluders: int
    threshold: int
    min_cohort: int
    ring: RingName
    segments: tuple[Segment, ...]
    degree: int | None = None
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.names)
        if len(self.identities) != n or len(set(self.names)) != n:
            raise ValueError("every member has one name and one identity")
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(self.names)})
        if self.degree is None:
            check_thresholds(n=n, colluders=self.colluders, threshold=self.threshold, min_cohort=self.min_cohort)
            if n > MAX_POINTS:
                raise ValueError("the complete graph goes up to 255 members")
        elif self.degree % 2 or not self.threshold <= self.degree + 1 <= min(n, MAX_POINTS):
            raise ValueError("degree is even, below n and at least t - 1")
        if not self.segments or any(s.length < 1 or not 0 < s.bound < float("inf") for s in self.segments):
            raise ValueError("segments have a length and a bound")

    @property
    def bits(self) -> int:
        """Bits of a ring element."""
        return BITS[self.ring]

    @property
    def parameters(self) -> int:
        """Values of an update."""
        return sum(segment.length for segment in self.segments)

    @property
    def length(self) -> int:
        """Elements of a vector: parameters and sentinels."""
        return self.parameters + 2 * SENTINELS

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector."""
        return self.length * self.bits // 8

    def index(self, name: str) -> int | None:
        """Return the member's index, None if there is no such member."""
        return self._index.get(name)

    def holders(self, owner: int, beacon: bytes) -> tuple[int, ...]:
        """Return who holds shares of `owner`, itself included, ascending; `beacon` draws a regular graph."""
        return _holders(len(self.names), self.degree, beacon)[owner] if self.degree else tuple(range(len(self.names)))

    def point(self, owner: int, holder: int, beacon: bytes) -> int:
        """Return the point at which `holder` has its share of `owner`'s secrets."""
        return self.holders(owner, beacon).index(holder) + 1 if self.degree else holder + 1


@functools.lru_cache(maxsize=8)
def _holders(n: int, degree: int, beacon: bytes) -> tuple[tuple[int, ...], ...]:
    """A ring in an order that the beacon shuffles, each joined to its `degree` nearest (Harary graph)."""
    order = sorted(range(n), key=lambda i: hashlib.sha256(beacon + i.to_bytes(4, "big")).digest())
    place = {member: position for position, member in enumerate(order)}
    near = range(-degree // 2, degree // 2 + 1)
    return tuple(tuple(sorted(order[(place[i] + step) % n] for step in near)) for i in range(n))
