"""Grouping more fingerprints than fit into memory.

Rules.
- Texts and identifiers become 64-bit fingerprints under a key that is drawn for each run and never stored: what is
  spilled to disk (an unlinked temporary file, 24 bytes a row) says nothing to whoever finds it.
- Rows with one key are given back in one part; a part is a 32nd of all rows.
- Two of n different values share a fingerprint with a chance of about n² / 2^65: one in 400,000 for ten million.

    >>> groups = Groups(); groups.add(7, 1, 1); groups.add(7, 2, 9)
    >>> [part.tolist() for part in groups.parts() if len(part)]
    [[[7, 1, 1], [7, 2, 9]]]
"""

import hashlib
from array import array
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

PART_BITS = 5
"""32 parts: so many files are open; of 100 million rows one part has 75 MB."""

_IN_MEMORY = 1 << 20  # bytes of a part that stay in memory
_WAITING_ROWS = 1 << 16  # rows that are sorted into parts at once

Rows = NDArray[np.uint64]  # [rows, 3]: key, value, place


class Fingerprint:
    """Makes 64-bit fingerprints under one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, text: str) -> int:
        """Return the fingerprint of `text`."""
        data = text.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._key).digest(), "big")


class Groups:
    """Takes rows (key, value, place) and gives them back part by part; close it."""

    def __init__(self) -> None:
        self._files: list[IO[bytes]] = [SpooledTemporaryFile(max_size=_IN_MEMORY) for _ in range(1 << PART_BITS)]  # noqa: SIM115
        self._waiting = array("Q")

    def add(self, key: int, value: int, place: int) -> None:
        """Take one row of numbers below 2^64."""
        self._waiting.extend((key, value, place))
        if len(self._waiting) >= 3 * _WAITING_ROWS:
            self._sort()

    def parts(self) -> Iterator[Rows]:
        """Yield all rows, those of one key together, in the order of key and place."""
        self._sort()
        for file in self._files:
            file.seek(0)
            rows = np.frombuffer(file.read(), np.uint64).reshape(-1, 3)
            yield rows[np.lexsort((rows[:, 2], rows[:, 0]))]

    def close(self) -> None:
        """Give the files back."""
        for file in self._files:
            file.close()

    def _sort(self) -> None:
        rows = np.frombuffer(self._waiting, np.uint64).reshape(-1, 3).copy()
        self._waiting = array("Q")
        part = rows[:, 0] >> np.uint64(64 - PART_BITS)
        for number in np.unique(part).tolist():
            self._files[number].write(rows[part == number].tobytes())
