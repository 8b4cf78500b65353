"""The audit log's tiled tree on disk: append entries, sign checkpoints, come back after a crash.

Rules (docs/spec/audit.md, rules 13 to 15).
- Bundles and tiles are durable before the checkpoint that names them.
- `load` refuses a folder that does not fit its checkpoint, and a checkpoint older than what hospitals cosigned,
  before it removes what an interrupted write left.
- After an OSError from any method the caller must `load` again before it goes on.
Not done here: encryption, locking, threads, turning errors into StorageError (`auditlog`).

    >>> tree = TreeFolder(folder=Path("audit"), log_key=key, origin="operator.wardround",
    ...                   files=OsFiles())  # doctest: +SKIP
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.derive import derive
from wardround_common.audit.note import Checkpoint, log_key_of, open_checkpoint, sign_checkpoint
from wardround_common.audit.reader import LogFolder, altered
from wardround_common.audit.tiles import (
    TILE_WIDTH,
    RightEdge,
    TileName,
    bundle_names,
    encode_bundle,
    leaf_hash,
    partial_names,
    tree_root,
)
from wardround_server.auditfiles import TEMPORARY, Files, publish

MAX_BATCH = 4_096
"""Entries in one append; a round of 100 hospitals has about 300."""


class TreeFolder:
    """The `audit/` folder of a log that this process writes."""

    def __init__(self, *, folder: Path, log_key: Ed25519PrivateKey, origin: str, files: Files) -> None:
        self.reader = LogFolder(folder)
        self.key = log_key_of(origin, log_key.public_key())
        self.checkpoint = ""  # newest note, signed by the log
        self.cosigned = ""  # newest note with a quorum's lines
        self.cosigned_size = 0
        self._folder, self._log_key, self._origin, self._files = folder, log_key, origin, files
        self._edge, self._bundle = RightEdge(), list[bytes]()  # the bundle is the partial one
        self._partials: set[TileName] = set()  # partial files that are there

    @property
    def size(self) -> int:
        """Number of durable entries."""
        return self._edge.size

    def load(self, *, full: bool, witnessed: int) -> None:
        """Take the state from the folder; make a new one if it is empty.

        Args:
            full: derive the whole tree again, not only its right edge.
            witnessed: the largest tree that a hospital is known to have cosigned.

        Raises:
            VerificationError: the folder does not fit its checkpoint.
            OSError: it could not be read or written.
        """
        if not self._path("checkpoint").exists() and not self._path("tile").exists():
            self._publish_checkpoint(self._sign(0, RightEdge().root()))
        note = self.reader.checkpoint()
        head = open_checkpoint(note, self.key)
        # A rename that was not synced may be visible and yet be lost: sync before relying on it.
        self._files.sync(self._path("checkpoint"))
        self._files.sync_folder(self._path("checkpoint").parent)
        self._refuse_old_copy(head.size, witnessed)
        self._remove_leftovers(head.size)
        if full:
            derive(self.reader, head, {head.size}, wraps=False)
        edge = RightEdge.load(head.size, self.reader.tile)
        tail = bundle_names(head.size, head.size // TILE_WIDTH * TILE_WIDTH)
        bundle = [entry for name in tail for entry in self.reader.bundle(name)]
        if edge.root() != head.root:
            raise altered("the tiles do not give the checkpoint's root")
        self._edge, self._bundle, self.checkpoint = edge, bundle, note
        self._load_cosigned()
        self._partials = {name for name in self.reader.inventory()[0] if name.width < TILE_WIDTH}
        self._tidy()

    def commit(self, entries: Sequence[bytes]) -> None:
        """Make entries durable and sign the checkpoint over them.

        Raises:
            OSError: nothing may be relied on until `load`.
        """
        edge, bundle, contents = self._edge.copy(), list(self._bundle), dict[Path, bytes]()
        for entry in entries:
            bundle.append(entry)
            for tile in edge.add(leaf_hash(entry)):
                contents[self._path(tile.name.path)] = tile.data
            if len(bundle) == TILE_WIDTH:
                contents[self._bundle_path(edge.size, TILE_WIDTH)] = encode_bundle(bundle)
                bundle = []
        if bundle:
            contents[self._bundle_path(edge.size, len(bundle))] = encode_bundle(bundle)
        contents |= {self._path(tile.name.path): tile.data for tile in edge.partial_tiles()}
        note = self._sign(edge.size, edge.root())
        publish(self._files, contents)
        self._publish_checkpoint(note)
        self._edge, self._bundle, self.checkpoint = edge, bundle, note
        self._partials |= _partials(edge.size)
        self._tidy()

    def store_cosigned(self, note: str, size: int) -> None:
        """Store the note of a quorum over the tree of `size`.

        Raises:
            OSError: not stored.
        """
        publish(self._files, {self._path("checkpoint.cosigned"): note.encode()})
        self.cosigned, self.cosigned_size = note, size
        self._tidy()

    def note_at(self, size: int) -> str:
        """Return the checkpoint of an earlier size; signing is deterministic, so it is the same text as then."""
        return self.checkpoint if size == self.size else self._sign(size, tree_root(size, self.size, self.reader.tile))

    def _sign(self, size: int, root: bytes) -> str:
        return sign_checkpoint(Checkpoint(origin=self._origin, size=size, root=root), self._log_key)

    def _publish_checkpoint(self, note: str) -> None:
        publish(self._files, {self._path("checkpoint"): note.encode()})

    def _tidy(self) -> None:
        """Delete partial tiles that neither checkpoint needs; the next start tries again."""
        needed = _partials(self.size) | _partials(self.cosigned_size)
        for name in self._partials - needed:
            with suppress(OSError):
                self._files.unlink(self._path(name.path))
        self._partials &= needed

    def _refuse_old_copy(self, size: int, witnessed: int) -> None:
        """Refuse a checkpoint that was put back, before anything beyond it is removed."""
        note = self.reader.cosigned()
        cosigned = max(witnessed, open_checkpoint(note, self.key).size if note else 0)
        if cosigned > size:
            raise altered(f"hospitals cosigned {cosigned} entries, its checkpoint names {size}")
        bundles = (name for name in self.reader.inventory()[0] if name.level is None)
        last = max((name.index * TILE_WIDTH + name.width for name in bundles), default=0)
        # A full bundle's name reaches at most one bundle further than what it holds.
        if last > size + MAX_BATCH + TILE_WIDTH:  # more than one interrupted append could have left
            raise altered(f"it holds entries up to {last}, its checkpoint names {size}")

    def _load_cosigned(self) -> None:
        self.cosigned, self.cosigned_size = self.reader.cosigned(), 0
        if self.cosigned:
            head = open_checkpoint(self.cosigned, self.key)
            if tree_root(head.size, self.size, self.reader.tile) != head.root:
                raise altered(f"hospitals cosigned {head.size} entries that this folder does not hold")
            self.cosigned_size = head.size

    def _remove_leftovers(self, size: int) -> None:
        """Remove what an interrupted write left beyond the checkpoint (docs/spec/audit.md, rule 14)."""
        tiles, others = self.reader.inventory()
        beyond = [self._path(name.path) for name in tiles if _reaches_beyond(name, size)]
        beyond += [self._folder / path for path in others if path.endswith(TEMPORARY)]
        for path in beyond:
            self._files.unlink(path)
        for folder in {path.parent for path in beyond}:
            self._files.sync_folder(folder)

    def _path(self, below: str) -> Path:
        return self._folder / "log" / below

    def _bundle_path(self, size: int, width: int) -> Path:
        return self._path(TileName(level=None, index=(size - 1) // TILE_WIDTH, width=width).path)


def _partials(size: int) -> set[TileName]:
    bundle = TileName(level=None, index=size // TILE_WIDTH, width=size % TILE_WIDTH)
    return {*partial_names(size), *([bundle] if bundle.width else [])}


def _reaches_beyond(name: TileName, size: int) -> bool:
    return name.index * TILE_WIDTH + name.width > size >> (8 * (name.level or 0))
