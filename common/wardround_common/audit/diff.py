"""Two copies of one log: the same, one the beginning of the other, or two histories.

Rules. Both checkpoints must be signed by the log's key. Where the leaf hashes differ first is found tile by tile, so
two copies of a million entries are compared by reading two times 32 MB. What is outside the tree (age files,
cosignatures) is compared by name and content and never decides about the history.
Not done here: whether either copy is intact (`verify`).

    >>> compare(LogFolder(Path("monday")), LogFolder(Path("tuesday")), trust).relation  # doctest: +SKIP
    'B continues A'
"""

from dataclasses import dataclass
from typing import Any, Literal

from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.tiles import HASH_BYTES, TILE_WIDTH
from wardround_common.audit.trust import Trust
from wardround_common.audit.witness import forked

Relation = Literal["same", "B continues A", "A continues B", "two histories"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What was found."""

    relation: Relation
    sizes: tuple[int, int]
    cosigned: tuple[int, int]
    first: int | None  # the first entry that differs or is only in one
    key_files: tuple[tuple[str, ...], tuple[str, ...]]  # only in A or other in A, only in B or other in B

    def require_one_history(self) -> None:
        """Raise if the copies tell two histories.

        Raises:
            VerificationError: they do.
        """
        if self.relation == "two histories":
            raise forked(f"both copies are signed by the log, but they differ from entry {self.first} on")

    def as_json(self) -> dict[str, Any]:
        """Return everything for programs."""
        return {
            "relation": self.relation,
            "sizes": self.sizes,
            "cosigned": self.cosigned,
            "first": self.first,
            "key_files_only_in_a": self.key_files[0],
            "key_files_only_in_b": self.key_files[1],
        }


def compare(a: LogFolder, b: LogFolder, trust: Trust) -> Difference:
    """Return how two folders of one log relate.

    Raises:
        VerificationError: a checkpoint is not signed by the log, or a file is missing.
    """
    sizes = (_size(a, a.checkpoint(), trust), _size(b, b.checkpoint(), trust))
    first = _first_difference(a, b, sizes)
    return Difference(
        relation=_relation(sizes, first),
        sizes=sizes,
        cosigned=(_size(a, a.cosigned(), trust), _size(b, b.cosigned(), trust)),
        first=first if first < max(sizes) else None,
        key_files=_key_files(a, b),
    )


def _size(folder: LogFolder, note: str, trust: Trust) -> int:
    return open_checkpoint(note, trust.log_key()).size if note else 0


def _relation(sizes: tuple[int, int], first: int) -> Relation:
    if first < min(sizes):
        return "two histories"
    if sizes[0] == sizes[1]:
        return "same"
    return "B continues A" if sizes[0] < sizes[1] else "A continues B"


def _first_difference(a: LogFolder, b: LogFolder, sizes: tuple[int, int]) -> int:
    """Return the first index at which the leaf hashes differ, or the smaller size."""
    common = min(sizes)
    for index in range(-(-common // TILE_WIDTH)):
        start = index * TILE_WIDTH
        widths = [min(TILE_WIDTH, size - start) for size in sizes]
        ours, theirs = a.tile(0, index, widths[0]), b.tile(0, index, widths[1])
        for at in range(0, HASH_BYTES * min(widths), HASH_BYTES):
            if ours[at : at + HASH_BYTES] != theirs[at : at + HASH_BYTES]:
                return start + at // HASH_BYTES
    return common


def _key_files(a: LogFolder, b: LogFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    ours, theirs = _keys(a), _keys(b)
    return (
        tuple(sorted(name for name, data in ours.items() if theirs.get(name) != data)),
        tuple(sorted(name for name, data in theirs.items() if ours.get(name) != data)),
    )


def _keys(folder: LogFolder) -> dict[str, bytes | None]:
    names = [path.removeprefix("keys/") for path in folder.inventory()[1] if path.startswith("keys/")]
    return {name: folder.wrap(name) for name in names}
