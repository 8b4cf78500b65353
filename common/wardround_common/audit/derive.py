"""Derive the whole log from its entries and compare everything stored with it.

Rules (docs/spec/audit.md, "What a verifier answers").
- Nothing stored is believed: every tile, every partial width and every age file is computed again from
  the entries, and the entries must give the checkpoint's root.
- Files that go beyond the checkpoint, or that nobody asked for, are remarks and never errors: a live
  writer may have been interrupted.
Not done here: signatures and what they mean (`verify`), decryption (`reader`).

    >>> derive(folder, head, {head.size}).roots[head.size] == head.root  # doctest: +SKIP
    True
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from wardround_common.audit.framing import Segment, SegmentChain, SegmentOpen
from wardround_common.audit.note import Checkpoint
from wardround_common.audit.reader import LogFolder, altered
from wardround_common.audit.segment import key_file_altered, wrap_name
from wardround_common.audit.tiles import (
    EMPTY_ROOT,
    HASH_BYTES,
    MAX_BUNDLE_BYTES,
    TILE_WIDTH,
    RightEdge,
    Tile,
    TileName,
    bundle_names,
    encode_bundle,
    leaf_hashes,
)
from wardround_common.documents import sha256_digest
from wardround_common.errors import VerificationError

Progress = Callable[[int, int], None]
"""(entries checked, entries in all)."""


@dataclass(kw_only=True)
class Derived:
    """What the entries themselves give."""

    roots: dict[int, bytes]
    segments: int = 0
    leftovers: int = 0
    remarks: list[str] = field(default_factory=list)


def derive(
    folder: LogFolder, head: Checkpoint, wanted: set[int], *, progress: Progress | None = None, wraps: bool = True
) -> Derived:
    """Derive the tree from all entries and compare everything stored with it.

    Args:
        folder: the audit folder.
        head: the checkpoint; its signature was verified by the caller.
        wanted: tree sizes whose roots are to be returned.
        progress: called after every bundle.
        wraps: compare the age files too.

    Raises:
        VerificationError: the first thing that does not fit.
    """
    edge, chain, derived = RightEdge(), SegmentChain(), Derived(roots={0: EMPTY_ROOT})
    stored = _Stored(folder, derived)
    for name in bundle_names(head.size):
        entries = folder.bundle(name)
        stored.compare_bundle(name, entries)
        chain.extend(entries)
        hashes = leaf_hashes(entries)
        for size in sorted(size for size in wanted if edge.size < size < edge.size + len(hashes)):
            derived.roots[size] = edge.root_with(hashes[: size - edge.size])
        for tile in edge.extend(hashes):
            stored.compare(tile)
        if edge.size in wanted:
            derived.roots[edge.size] = edge.root()
        if progress:
            progress(edge.size, head.size)
    for tile in edge.partial_tiles():
        stored.compare(tile)
    if edge.root() != head.root:
        raise altered("the entries do not give the checkpoint's root")
    if wraps:
        _check_wraps(folder, chain, stored)
    stored.remark()
    derived.segments = len(chain.segments)
    if chain.unknown:
        derived.remarks.append(
            f"{chain.unknown} entries were written by a newer version: their content is unknown here"
        )
    return derived


class _Stored:
    """The files that are really there, ticked off one by one."""

    def __init__(self, folder: LogFolder, derived: Derived) -> None:
        self._folder, self._derived, self.remarks = folder, derived, derived.remarks
        tiles, self.others = folder.inventory()
        self._widths: dict[tuple[int | None, int], list[int]] = defaultdict(list)
        for name in tiles:
            self._widths[name.level, name.index].append(name.width)

    def compare(self, tile: Tile) -> None:
        """Compare every stored width of one tile with the derived hashes."""
        name = tile.name
        assert name.level is not None
        if self._folder.tile(name.level, name.index, name.width) != tile.data:
            raise altered(f"{name.path} does not fit the entries")
        self._compare_widths(name, lambda width: tile.data[: width * HASH_BYTES], TILE_WIDTH * HASH_BYTES)

    def compare_bundle(self, name: TileName, entries: list[bytes]) -> None:
        """Compare every other stored width of one bundle with the entries, which came from the file of this width."""
        widths = self._widths.get((name.level, name.index), [])
        if widths == [name.width]:
            del self._widths[name.level, name.index]
            return
        self._compare_widths(name, lambda width: encode_bundle(entries[:width]), MAX_BUNDLE_BYTES)

    def _compare_widths(self, name: TileName, expected: Callable[[int], bytes], limit: int) -> None:
        for width in self._widths.pop((name.level, name.index), []):
            path = TileName(level=name.level, index=name.index, width=width).path
            data, wanted = self._folder.read(f"log/{path}", limit), expected(width)
            if data is None:
                continue  # deleted by a live writer
            if data[: len(wanted)] != wanted or (width <= name.width and len(data) != len(wanted)):
                raise altered(f"{path} does not fit the entries")
            self._derived.leftovers += width > name.width

    def remark(self) -> None:
        """Say what nobody asked for."""
        self._derived.leftovers += sum(len(widths) for widths in self._widths.values())
        temporary = [path for path in self.others if path.endswith(".tmp")]
        self._derived.leftovers += len(temporary)
        if self._derived.leftovers:
            self._derived.remarks.append(
                f"{self._derived.leftovers} files go beyond the checkpoint: a write was interrupted before it counted"
            )
        unexpected = sorted(set(self.others) - set(temporary) - {"log/checkpoint", "log/checkpoint.cosigned", ".lock"})
        unexpected = [path for path in unexpected if not path.startswith("timestamps/")]  # signed by others
        if unexpected:
            self._derived.remarks.append(f"{len(unexpected)} files do not belong to the log, e.g. {unexpected[0][:80]}")


def _check_wraps(folder: LogFolder, chain: SegmentChain, stored: _Stored) -> None:
    for name, segment in chain.segments.items():
        present = [digest for digest in segment.wraps if _wrap_is_there(folder, name, segment, digest, stored)]
        if segment.shredded:
            stored.remarks.append(
                f"segment {name} was shredded: nobody can read it"
                if not present
                else f"segment {name} was shredded, but a key file of it is still here"
            )
        elif not present:
            raise VerificationError(
                "log-key-file-missing",
                f"keys/{name}.age is missing: nobody can read that segment",
                next_step="copy the whole audit folder again; if the operator deleted the file, ask why",
            )


def _wrap_is_there(folder: LogFolder, name: str, segment: Segment, digest: str, stored: _Stored) -> bool:
    assert isinstance(segment.opened.record, SegmentOpen)
    file = wrap_name(name, segment.opened.record, digest)
    wrap = folder.wrap(file)
    if wrap is None:
        return False
    if sha256_digest(wrap) != digest:
        raise key_file_altered(f"keys/{file} is not the file that the log names")
    if f"keys/{file}" in stored.others:
        stored.others.remove(f"keys/{file}")
    return True
