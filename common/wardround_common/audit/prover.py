"""Inclusion proofs of many entries of one tree.

Rules. The leaf hashes are read once; every inner node is hashed at most once (32 MB for a million entries). For one
entry `tiles.inclusion_proof` reads less.

    >>> Prover.of(folder, size).proof(0)  # doctest: +SKIP
    (b'…', b'…')
"""

from typing import Self

from wardround_common.audit.reader import LogFolder
from wardround_common.audit.tiles import HASH_BYTES, TILE_WIDTH, node_hash


def level_hashes(folder: LogFolder, level: int, count: int) -> bytes:
    """Return the first `count` hashes of a level of the stored tree, 32 bytes each.

    Raises:
        VerificationError: a tile is missing or too short.
    """
    tiles = range(-(-count // TILE_WIDTH))
    return b"".join(folder.tile(level, n, min(TILE_WIDTH, count - n * TILE_WIDTH)) for n in tiles)


class Prover:
    """Proofs in the tree of some leaf hashes."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.size = len(leaves)
        self._leaves = leaves
        self._nodes: dict[tuple[int, int], bytes] = {}  # (low, high) -> hash

    @classmethod
    def of(cls, folder: LogFolder, size: int) -> Self:
        """Return proofs for the first `size` entries of a folder."""
        data = level_hashes(folder, 0, size)
        return cls([data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)])

    def root(self) -> bytes:
        """Return the root, of a tree that is not empty."""
        return self._hash(0, self.size)

    def leaf(self, index: int) -> bytes:
        """Return an entry's leaf hash."""
        return self._leaves[index]

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Return the inclusion proof of one entry (RFC 6962 2.1.1)."""
        if not 0 <= index < self.size:
            raise ValueError(f"no entry {index} in a tree of {self.size}")
        found: list[bytes] = []
        low, high = 0, self.size
        while high - low > 1:
            middle = low + _split(high - low)
            found.append(self._hash(middle, high) if index < middle else self._hash(low, middle))
            low, high = (low, middle) if index < middle else (middle, high)
        return tuple(reversed(found))

    def _hash(self, low: int, high: int) -> bytes:
        if high - low == 1:
            return self._leaves[low]
        key = (low, high)
        if key not in self._nodes:
            middle = low + _split(high - low)
            self._nodes[key] = node_hash(self._hash(low, middle), self._hash(middle, high))
        return self._nodes[key]


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)
