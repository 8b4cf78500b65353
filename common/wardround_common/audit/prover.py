"""Inclusion proofs of many entries of one tree, in order, in little memory.

Rules. One tile of leaves is held at a time, and one hash for every 256 entries: 160 kB for a million entries. Asked in
order, every tile is read once, every inner node hashed at most twice. For one entry `tiles.inclusion_proof` reads less.

    >>> Prover.of(folder, size).proof(0)  # doctest: +SKIP
    (b'…', b'…')
"""

from typing import Self

from wardround_common.audit.reader import LogFolder
from wardround_common.audit.tiles import HASH_BYTES, TILE_WIDTH, Fetch, node_hash


def level_hashes(fetch: Fetch, level: int, count: int) -> bytes:
    """Return the first `count` hashes of a level of the stored tree, 32 bytes each.

    Raises:
        VerificationError: a tile is missing or too short.
    """
    tiles = range(-(-count // TILE_WIDTH))
    return b"".join(fetch(level, n, min(TILE_WIDTH, count - n * TILE_WIDTH)) for n in tiles)


class Prover:
    """Proofs in the tree of `size` entries whose tiles `fetch` returns."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self.size = size
        self._fetch = fetch
        self._roots = level_hashes(fetch, 1, size // TILE_WIDTH)  # of full tiles
        self._upper: dict[tuple[int, int], bytes] = {}  # (low, high) -> hash, beyond the tile at hand
        self._tile, self._leaves = -1, b""
        self._inner: dict[tuple[int, int], bytes] = {}  # ... within it

    @classmethod
    def of(cls, folder: LogFolder, size: int) -> Self:
        """Return proofs for the first `size` entries of a folder."""
        return cls(size, folder.tile)

    def root(self) -> bytes:
        """Return the root, of a tree that is not empty."""
        return self._hash(0, self.size)

    def leaf(self, index: int) -> bytes:
        """Return an entry's leaf hash."""
        self._take(index // TILE_WIDTH)
        at = index % TILE_WIDTH * HASH_BYTES
        return self._leaves[at : at + HASH_BYTES]

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Return the inclusion proof of one entry (RFC 6962 2.1.1)."""
        if not 0 <= index < self.size:
            raise ValueError(f"no entry {index} in a tree of {self.size}")
        self._take(index // TILE_WIDTH)
        found: list[bytes] = []
        low, high = 0, self.size
        while high - low > 1:
            middle = low + _split(high - low)
            found.append(self._hash(middle, high) if index < middle else self._hash(low, middle))
            low, high = (low, middle) if index < middle else (middle, high)
        return tuple(reversed(found))

    def _take(self, tile: int) -> None:
        if tile != self._tile:
            self._leaves = self._fetch(0, tile, min(TILE_WIDTH, self.size - tile * TILE_WIDTH))
            self._tile, self._inner = tile, {}

    def _hash(self, low: int, high: int) -> bytes:
        """Return the root over entries `low` to `high` - 1, a range that RFC 6962 splits into."""
        tile = low // TILE_WIDTH
        if high - low == TILE_WIDTH:  # a full tile
            return self._roots[tile * HASH_BYTES : (tile + 1) * HASH_BYTES]
        if high - low > TILE_WIDTH or tile != self._tile:
            return self._remember(self._upper, low, high)
        if high - low == 1:
            return self.leaf(low)
        return self._remember(self._inner, low, high)

    def _remember(self, nodes: dict[tuple[int, int], bytes], low: int, high: int) -> bytes:
        key = (low, high)
        if key not in nodes:
            if high - low < TILE_WIDTH and low // TILE_WIDTH != self._tile:  # the tree's last, partial tile
                nodes[key] = Prover(self.size, self._fetch)._in_tile(low, high)
            else:
                middle = low + _split(high - low)
                nodes[key] = node_hash(self._hash(low, middle), self._hash(middle, high))
        return nodes[key]

    def _in_tile(self, low: int, high: int) -> bytes:
        self._take(low // TILE_WIDTH)
        return self._hash(low, high)


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)
