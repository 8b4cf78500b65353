"""The server's running sum: masked vectors added, masks removed, the mean checked (docs/spec/secagg.md, rule 20).

Rules.
- One vector of ring elements is kept, whatever the number of members; files are read in pieces of 1 MiB.
- A file is read twice: first its length and digest are compared with the signed header, then it is added.
  So a spoilt upload changes nothing.
- Adding is modular and exact, in any order.

    >>> total = RunningSum(rules)
    >>> total.add_file(path, header)
    >>> total.remove(masks); total.mean(survivors=3)
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wardround_common.errors import StorageError
from wardround_common.secagg.documents import MaskedHeader
from wardround_common.secagg.errors import vector_invalid
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.masks import MaskSeed, RingVector, apply_masks
from wardround_common.secagg.rules import Rules

PIECE = 1 << 20
"""Bytes read at a time."""


class RunningSum:
    """The sum of masked vectors modulo the ring.

    Args:
        rules: the study's parameters.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._fixed = FixedPoint(rules.segments, members=len(rules.names), ring=rules.ring)
        self._total: RingVector = np.zeros(rules.length, np.dtype(f"<u{rules.bits // 8}"))
        self.added: frozenset[str] = frozenset()

    def add_file(self, path: Path, header: MaskedHeader) -> None:
        """Add the vector that `header` names.

        Args:
            path: the upload.
            header: verified.

        Raises:
            VerificationError: another length or digest; nothing was added.
            StorageError: the file cannot be read.
            ValueError: the site's vector is in the sum already (misuse).
        """
        if header.site in self.added:
            raise ValueError("a vector is added once")
        length, content = _measure(path)
        if length != self._rules.vector_bytes or length != header.vector.length:
            raise vector_invalid(header.site, f"{length} bytes where {self._rules.vector_bytes} belong")
        if content != header.vector.digest:
            raise vector_invalid(header.site, "another digest")
        start = 0
        for piece in _pieces(path):
            elements = np.frombuffer(piece, self._total.dtype)
            self._total[start : start + elements.size] += elements
            start += elements.size
        self.added |= {header.site}

    def remove(self, masks: Iterable[MaskSeed]) -> None:
        """Remove masks, given with the sign that they have in the sum."""
        apply_masks(self._total, ((seed, -sign) for seed, sign in masks))

    def mean(self, *, survivors: int) -> NDArray[np.float32]:
        """Return the mean of the opened sum, [parameters] float32.

        Raises:
            VerificationError: sentinels or range do not hold: the round failed.
        """
        return self._fixed.mean(self._total, survivors=survivors)

    def means(self, *, survivors: int) -> Iterator[NDArray[np.float32]]:
        """Return the same in pieces, checked before the first; raises as `mean`."""
        return self._fixed.means(self._total, survivors=survivors)

    def to_bytes(self) -> bytes:
        """Return the sum's elements, little endian, to be kept for a reviewer."""
        return self._total.tobytes()


def _measure(path: Path) -> tuple[int, str]:
    length, digest = 0, hashlib.sha256()
    for piece in _pieces(path):
        length += len(piece)
        digest.update(piece)
    return length, f"sha256:{digest.hexdigest()}"


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise StorageError(
            "secagg-vector-unreadable",
            f"cannot read the masked vector {path.name}: {error.strerror}",
            next_step="free or mend the disk; the server continues the round after a restart",
        ) from None
