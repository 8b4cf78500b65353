"""The audit log's journal: what was acknowledged but is not in the tree yet (docs/spec/audit.md, "Journal").

Rules.
- A batch is written with one append and one sync; when that returned, its entries are acknowledged.
- A file is named by its first entry's index. What is in the tree already is skipped when files are read.
- A batch that is not whole was never acknowledged, if nothing whole follows it: it is dropped. Anything else that does
  not fit is damage and refused.
- Message keys that hospitals must still be given are sealed; entries are ciphertext anyway.
Not done here: threads, what is in a batch, the tree.

    >>> parse_batches(frame_batch(Batch(first=7, entries=(b"entry",), keys=b"")))[0].first
    7
"""

import hashlib
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wardround_common.audit.reader import altered
from wardround_common.audit.tiles import decode_bundle, encode_bundle
from wardround_common.errors import VerificationError
from wardround_server.auditfiles import Files, make_folder

_MAGIC = b"wrdjrnl1"
_HEAD = struct.Struct(">QII")  # first index, number of entries, bytes of the sealed keys
_DIGEST_BYTES = 32
_PREFIX = len(_MAGIC) + _DIGEST_BYTES + 4 + _HEAD.size  # magic, digest, length of what follows, head


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Entries that were acknowledged together."""

    first: int  # index of the first entry
    entries: tuple[bytes, ...]
    keys: bytes = field(repr=False)  # sealed message keys, empty when the entries concern no hospital

    @property
    def end(self) -> int:
        """Index after the last entry."""
        return self.first + len(self.entries)


def frame_batch(batch: Batch) -> bytes:
    """Return a batch's bytes: magic, SHA-256 of the rest, length, head, sealed keys, entries with 16-bit lengths."""
    body = _HEAD.pack(batch.first, len(batch.entries), len(batch.keys)) + batch.keys + encode_bundle(batch.entries)
    rest = struct.pack(">I", len(body)) + body
    return _MAGIC + hashlib.sha256(rest).digest() + rest


def parse_batches(data: bytes) -> list[Batch]:
    """Return a file's batches; what an interrupted write left at its end is dropped.

    Raises:
        VerificationError: something whole follows something that is not.
    """
    batches, at = list[Batch](), 0
    while at < len(data):
        found = _batch_at(data, at)
        if found is None:
            _refuse_more(data, at + 1)
            return batches
        batch, at = found
        batches.append(batch)
    return batches


class Journal:
    """The files of one log's journal.

    Args:
        folder: `state/audit-journal`.
        files: file-system calls.
    """

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder, self._files = folder, files
        self._current: Path | None = None  # the file that is appended to
        self._before: list[Path] = []  # files whose entries are being put into the tree

    def append(self, batch: Batch) -> None:
        """Write a batch durably.

        Raises:
            OSError: not acknowledged; the journal must be read again before anything else is written.
        """
        fresh = self._current is None
        if self._current is None:
            make_folder(self._files, self._folder)
            self._current = self._folder / f"{batch.first:016d}"
        self._files.append(self._current, frame_batch(batch))
        if fresh:
            self._files.sync_folder(self._folder)

    def turn(self) -> None:
        """Begin another file with the next batch."""
        if self._current is not None:
            self._before.append(self._current)
            self._current = None

    def drop(self) -> None:
        """Delete the files from before the last `turn`: the tree holds their entries. The next start tries again."""
        for path in self._before:
            with suppress(OSError):
                self._files.unlink(path)
        self._before.clear()

    def read(self, size: int) -> list[Batch]:
        """Return the batches beyond a tree of `size`, in order; their first may begin before its end.

        Raises:
            VerificationError: entries are missing or damaged.
            OSError: a file could not be read.
        """
        paths, batches, expected = self._paths(), list[Batch](), size
        for number, path in enumerate(paths):
            found = parse_batches(path.read_bytes())
            if found and found[0].first != int(path.name):
                raise altered(f"the journal file {path.name} begins with entry {found[0].first}")
            for batch in found:
                if batch.end <= size:
                    continue
                if batch.first > expected or (batches and batch.first != expected):
                    raise altered(f"entries {expected} to {batch.first - 1} are missing from the journal")
                batches.append(batch)
                expected = batch.end
            if not found and number + 1 < len(paths):
                raise altered(f"the journal file {path.name} is damaged")
        return batches

    def clear(self) -> None:
        """Delete all files, durably; everything in them is in the tree or was never acknowledged.

        Raises:
            OSError: not deleted.
        """
        paths = self._paths()
        for path in paths:
            self._files.unlink(path)
        if paths:
            self._files.sync_folder(self._folder)
        self._current = None
        self._before.clear()

    def _paths(self) -> Sequence[Path]:
        if not self._folder.is_dir():
            return ()
        return sorted(path for path in self._folder.iterdir() if path.name.isascii() and path.name.isdigit())


def _batch_at(data: bytes, at: int) -> tuple[Batch, int] | None:
    """Return the whole batch at `at` and where it ends."""
    start = at + len(_MAGIC) + _DIGEST_BYTES
    if data[at : at + len(_MAGIC)] != _MAGIC or len(data) < at + _PREFIX:
        return None
    end = start + 4 + int.from_bytes(data[start : start + 4], "big")
    if end > len(data) or hashlib.sha256(data[start:end]).digest() != data[start - _DIGEST_BYTES : start]:
        return None
    first, count, keys = _HEAD.unpack_from(data, start + 4)
    body = start + 4 + _HEAD.size
    try:
        entries = tuple(decode_bundle(data[body + keys : end], count))
    except VerificationError:
        return None
    return Batch(first=first, entries=entries, keys=data[body : body + keys]), end


def _refuse_more(data: bytes, at: int) -> None:
    while (at := data.find(_MAGIC, at)) >= 0:
        if _batch_at(data, at):
            raise altered("its journal is damaged before entries that were acknowledged")
        at += 1
