"""Merkle tree, tiles and proofs of the audit log (RFC 6962 section 2.1, C2SP tlog-tiles).

Rules.
- Hashes are SHA-256; a leaf is H(0x00 || entry), a node is H(0x01 || left || right).
- A tile is up to 256 consecutive hashes of one level; level l + 1 holds the roots of full tiles of level l.
- Proofs are checked by `verify_inclusion` and `verify_consistency`, which raise or return nothing.
Not done here: files (`reader`), signatures (`note`), what an entry means (`seal`). Proof makers ask a
`Fetch` callable for tiles.

    >>> edge = RightEdge()
    >>> edge.add(leaf_hash(b""))
    []
    >>> edge.root().hex()[:16]
    '6e340b9cffb37a98'
"""

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from wardround_common.errors import VerificationError

TILE_WIDTH = 256
HASH_BYTES = 32

MAX_ENTRY_BYTES = 65_535
"""Bundles carry 16-bit lengths (C2SP tlog-tiles)."""

MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)
"""The largest bundle that can be well-formed; a reader must not load more into memory."""

MAX_TREE_SIZE = 1 << 40
"""A million entries a second for twelve days; larger numbers only cost a verifier time."""

MAX_PROOF_HASHES = 2 * 40
"""No proof in a tree of MAX_TREE_SIZE is longer."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of the tree without entries."""

Fetch = Callable[[int, int, int], bytes]
"""(level, index, width) -> the tile's `width` hashes, 32 bytes each."""

Known = dict[tuple[int, int], bytes]
"""(first, end) of a range of entries -> its root; a log only grows, so it never changes."""


def leaf_hash(entry: bytes) -> bytes:
    """Return RFC 6962's leaf hash."""
    return hashlib.sha256(b"\x00" + entry).digest()


def leaf_hashes(entries: Sequence[bytes]) -> list[bytes]:
    """Return `leaf_hash` of each, without a call for each of a verifier's million entries."""
    sha256 = hashlib.sha256
    return [sha256(b"\x00" + entry).digest() for entry in entries]


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return RFC 6962's interior hash."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, kw_only=True)
class TileName:
    """Where a tile (or, with level None, an entry bundle) lies."""

    level: int | None
    index: int
    width: int = TILE_WIDTH  # hashes or entries

    @property
    def path(self) -> str:
        """The path below the log's prefix, e.g. `tile/0/x001/234.p/5`."""
        number, parts = self.index, [f"{self.index % 1000:03d}"]
        while number := number // 1000:
            parts.insert(0, f"x{number % 1000:03d}")
        level = "entries" if self.level is None else str(self.level)
        return f"tile/{level}/{'/'.join(parts)}" + (f".p/{self.width}" if self.width < TILE_WIDTH else "")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A tile's name and its hashes."""

    name: TileName
    data: bytes  # 32 * name.width


_PATH = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


def parse_tile_path(path: str) -> TileName | None:
    """Return the tile that `path` names, or None when it is no tile's path."""
    match = _PATH.fullmatch(path)
    if not match:
        return None
    level, number, width = match.groups()
    name = TileName(
        level=None if level == "entries" else int(level),
        index=int(number.replace("x", "").replace("/", "")),
        width=int(width) if width else TILE_WIDTH,
    )
    return name if name.path == path else None


class RightEdge:
    """The right edge of a growing tree: all that appending needs, O(log n) memory."""

    def __init__(self) -> None:
        self.size = 0  # entries
        self._levels: list[list[bytes]] = [[]]  # the partial tile of each level

    @classmethod
    def load(cls, size: int, fetch: Fetch) -> "RightEdge":
        """Rebuild the edge of a stored tree from its partial tiles."""
        edge = cls()
        edge.size = size
        for name in partial_names(size):
            assert name.level is not None
            edge._levels.extend([] for _ in range(name.level + 1 - len(edge._levels)))
            edge._levels[name.level] = _split(fetch(name.level, name.index, name.width))
        return edge

    def copy(self) -> "RightEdge":
        """Return an independent copy."""
        edge = RightEdge()
        edge.size, edge._levels = self.size, [list(level) for level in self._levels]
        return edge

    def add(self, hash_: bytes) -> list[Tile]:
        """Append one leaf hash; return the tiles that became full."""
        self.size += 1
        full: list[Tile] = []
        for level in range(64):
            if level == len(self._levels):
                self._levels.append([])
            hashes = self._levels[level]
            hashes.append(hash_)
            if len(hashes) < TILE_WIDTH:
                break
            index = (self.size >> (8 * (level + 1))) - 1
            full.append(Tile(name=TileName(level=level, index=index), data=b"".join(hashes)))
            hash_, self._levels[level] = root_of(hashes), []
        return full

    def extend(self, hashes: Sequence[bytes]) -> list[Tile]:
        """Append leaf hashes, at most one tile of them; return the tiles that became full, lowest level first."""
        if len(hashes) != TILE_WIDTH or self._levels[0]:
            return [tile for hash_ in hashes for tile in self.add(hash_)]
        self._levels[0] = list(hashes[:-1])  # a whole tile at once: what a verifier does a thousand times
        self.size += TILE_WIDTH - 1
        return self.add(hashes[-1])

    def root_with(self, hashes: Sequence[bytes]) -> bytes:
        """Return the root after appending `hashes`, without appending them."""
        edge = self.copy()
        edge.extend(hashes)
        return edge.root()

    def partial_tiles(self) -> list[Tile]:
        """Return the tree's partial tiles, lowest level first."""
        return [
            Tile(name=name, data=b"".join(self._levels[name.level]))
            for name in partial_names(self.size)
            if name.level is not None
        ]

    def root(self) -> bytes:
        """Return the tree's root."""
        right: bytes | None = None
        for hashes in self._levels:
            if hashes:
                right = root_of(hashes if right is None else [*hashes, right])
        return right if right is not None else EMPTY_ROOT


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root over subtree hashes: full subtrees of one height, the last one possibly lower.

    Pairing neighbours and carrying an odd last one up equals RFC 6962's recursive split.
    """
    sha256 = hashlib.sha256
    while len(hashes) > 1:
        # `node_hash`, without a call for each of a verifier's million nodes
        paired = [
            sha256(b"\x01" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=False)
        ]
        hashes = [*paired, hashes[-1]] if len(hashes) % 2 else paired
    return hashes[0]


def partial_names(size: int) -> list[TileName]:
    """Return the names of the partial tiles of a tree of `size` entries, lowest level first."""
    names, level = [], 0
    while size >> (8 * level):
        count = size >> (8 * level)
        if count % TILE_WIDTH:
            names.append(TileName(level=level, index=count // TILE_WIDTH, width=count % TILE_WIDTH))
        level += 1
    return names


def bundle_names(size: int, start: int = 0) -> Iterator[TileName]:
    """Yield the names of the entry bundles that hold entries `start` to `size` - 1."""
    for index in range(start // TILE_WIDTH, -(-size // TILE_WIDTH)):
        yield TileName(level=None, index=index, width=min(TILE_WIDTH, size - TILE_WIDTH * index))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Return entries, each with a 16-bit length before it."""
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def decode_bundle(data: bytes, width: int, *, exact: bool = True) -> list[bytes]:
    """Return the first `width` entries of a bundle.

    Args:
        data: the bundle.
        width: how many entries are wanted.
        exact: refuse a bundle that holds more.

    Raises:
        VerificationError: too few entries, a cut entry, or more than allowed.
    """
    entries: list[bytes] = []
    at, size = 0, len(data)
    while at + 2 <= size and len(entries) < width:
        start = at + 2
        at = start + (data[at] << 8 | data[at + 1])
        entries.append(data[start:at])
    if len(entries) < width or at > len(data) or (exact and at != len(data)):
        raise VerificationError(
            "log-entries-altered",
            f"an entry bundle does not hold {width} whole entries",
            next_step="the log was altered or copied incompletely: copy the audit folder again, then ask the operator",
        )
    return entries


def inclusion_proof(index: int, size: int, fetch: Fetch, known: Known | None = None) -> tuple[bytes, ...]:
    """Return the proof that entry `index` is in the tree of `size` entries (RFC 6962 2.1.1).

    Args:
        index: the entry's.
        size: the tree's.
        fetch: returns tiles.
        known: subtrees' roots by their range, taken and added to, for several proofs of one tree.
    """
    if not 0 <= index < size:
        raise ValueError(f"no entry {index} in a tree of {size}")
    fetch = remembering(fetch)
    proof, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split_point(high - low)
        if index < middle:
            proof.append(range_hash(middle, high, size, fetch, known))
            high = middle
        else:
            proof.append(range_hash(low, middle, size, fetch, known))
            low = middle
    return tuple(reversed(proof))


def consistency_proof(old_size: int, size: int, fetch: Fetch) -> tuple[bytes, ...]:
    """Return the proof that the tree of `old_size` is the beginning of that of `size` (RFC 6962 2.1.2)."""
    if not 0 <= old_size <= size:
        raise ValueError(f"a tree of {size} has no beginning of {old_size}")
    if old_size in (0, size):
        return ()
    fetch = remembering(fetch)
    proof, low, high, whole = [], 0, size, True
    while old_size != high:
        middle = low + _split_point(high - low)
        if old_size <= middle:
            proof.append(range_hash(middle, high, size, fetch))
            high = middle
        else:
            proof.append(range_hash(low, middle, size, fetch))
            low, whole = middle, False
    if not whole:
        proof.append(range_hash(low, high, size, fetch))
    return tuple(reversed(proof))


def tree_root(size: int, tree_size: int, fetch: Fetch) -> bytes:
    """Return the root of the first `size` entries of a stored tree of `tree_size` entries."""
    return range_hash(0, size, tree_size, fetch) if size else EMPTY_ROOT


def range_hash(low: int, high: int, size: int, fetch: Fetch, known: Known | None = None) -> bytes:
    """Return the root over entries `low` to `high` - 1; `low` is a multiple of the range's left subtree."""
    if known is None:
        return _range_hash(low, high, size, fetch, {})
    if (low, high) not in known:
        known[low, high] = _range_hash(low, high, size, fetch, known)
    return known[low, high]


def _range_hash(low: int, high: int, size: int, fetch: Fetch, known: Known) -> bytes:
    count = high - low
    if count & (count - 1) == 0:
        height = count.bit_length() - 1
        level, inside = divmod(height, 8)
        first = low >> (8 * level)
        index = first // TILE_WIDTH
        width = min(TILE_WIDTH, (size >> (8 * level)) - index * TILE_WIDTH)
        start = HASH_BYTES * (first % TILE_WIDTH)
        return root_of(_split(fetch(level, index, width)[start : start + (HASH_BYTES << inside)]))
    middle = low + _split_point(count)
    return node_hash(range_hash(low, middle, size, fetch, known), range_hash(middle, high, size, fetch, known))


def verify_inclusion(hash_: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf hash is entry `index` of the tree (RFC 9162 2.1.3.2).

    Raises:
        VerificationError: it is not, or the proof is malformed.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise _bad_proof(f"entry {index} is not in a tree of {size}")
    _check_hashes(proof)
    at, last = index, size - 1
    for sibling in proof:
        if last == 0:
            raise _bad_proof("the inclusion proof is too long")
        if at & 1 or at == last:
            hash_ = node_hash(sibling, hash_)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            hash_ = node_hash(hash_, sibling)
        at, last = at >> 1, last >> 1
    if last or hash_ != root:
        raise _bad_proof(f"entry {index} is not in the tree that the checkpoint names")


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the old tree is the beginning of the new one (RFC 9162 2.1.4.2).

    Raises:
        VerificationError: it is not, or the proof is malformed.
    """
    if not 0 <= old_size <= size <= MAX_TREE_SIZE:
        raise _bad_proof(f"a tree of {size} cannot extend one of {old_size}")
    _check_hashes(proof)
    if old_size in (0, size):
        if proof or (old_size == size and old_root != root) or (old_size == 0 and old_root != EMPTY_ROOT):
            raise _bad_proof(f"the tree of {size} does not begin with the known tree of {old_size}")
        return
    hashes = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not hashes:
        raise _bad_proof("the consistency proof is empty")
    at, last = old_size - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise _bad_proof("the consistency proof is too long")
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    if last or old != old_root or new != root:
        raise _bad_proof(f"the tree of {size} does not begin with the known tree of {old_size}")


def remembering(fetch: Fetch) -> Fetch:
    """Return `fetch` that asks once for each tile: a proof takes up to eight hashes from one."""
    tiles: dict[tuple[int, int], bytes] = {}

    def remembered(level: int, index: int, width: int) -> bytes:
        if (level, index) not in tiles:
            tiles[level, index] = fetch(level, index, width)
        return tiles[level, index]

    return remembered


def _split_point(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_HASHES or any(len(hash_) != HASH_BYTES for hash_ in proof):
        raise _bad_proof("the proof is not a short list of 32-byte hashes")


def _bad_proof(why: str) -> VerificationError:
    return VerificationError(
        "log-proof-invalid", why, next_step="do not rely on this log; keep what you were given and ask the operator"
    )
