"""Bytes by digest: model adapters and sealed updates, as files.

Rules.
- A blob's name is its SHA-256. It appears under that name only complete, verified and flushed:
  write, fsync, rename, fsync of the folder. Readers never see a half-written one.
- An upload is resumable: `received` says from where. Bytes may be sent again, never beyond the
  declared length. At the end the digest decides; a wrong one throws the upload away.
- Partial uploads belong to an `owner`, so that one site cannot spoil another's.
- `open` and `verify` hash a file once, and again whenever its inode, size or modification time is another than when
  they did: hashing an update at each of its readings cost the server more than everything else that it does with it.
  What changes without these (a rotten disk) is for the reader to notice, as sealed updates do. `read` hashes what it
  returns.
Not done here: who may put or get (server's gate), encryption (blobs are already sealed or public).

    >>> store = FileBlobStore(Path(folder))  # doctest: +SKIP
    >>> store.read(store.put(b"adapter"))  # doctest: +SKIP
    b'adapter'
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from wardround_common.errors import ProtocolError, StorageError, VerificationError
from wardround_common.rounds import BlobRef
from wardround_common.wire.limits import CHUNK_BYTES, MAX_BLOB_BYTES

SPARE_BYTES = 256 << 20
"""Disk space that a blob must leave free, so that databases and the audit log can still be written."""

_OWNER = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")


_Mark = tuple[int, int, int]  # inode, size, time of the last modification in nanoseconds


class BlobStore(Protocol):
    """What rounds and transport need of a store; files here, memory in tests."""

    def put(self, data: bytes | Iterable[bytes]) -> BlobRef:
        """Store a whole blob and return its reference."""

    def has(self, blob: BlobRef) -> bool:
        """Return whether the blob is complete here."""

    def path(self, blob: BlobRef) -> Path:
        """Return the file of a complete blob (not verified again; `read` does)."""

    def read(self, blob: BlobRef) -> bytes:
        """Return a complete blob after verifying its digest."""

    def verify(self, blob: BlobRef) -> None:
        """Return if the complete blob's bytes have its digest."""

    def remove(self, blob: BlobRef) -> None:
        """Remove a blob and its partial uploads, if they are there."""

    def received(self, blob: BlobRef, owner: str) -> int:
        """Return how many bytes of an upload are here (its length once complete)."""

    def write(self, blob: BlobRef, owner: str, offset: int, data: bytes) -> int:
        """Add `data` at `offset` to an upload and return how many bytes are here."""

    def finish(self, blob: BlobRef, owner: str) -> None:
        """Verify a fully received upload and make it a blob."""


class FileBlobStore:
    """Blobs in one folder: `<hex digest>`, and `<hex digest>.<owner>.part` while they grow."""

    def __init__(self, folder: Path, *, spare_bytes: int = SPARE_BYTES) -> None:
        """Open the store, creating `folder` (0700).

        Raises:
            StorageError: the folder cannot be made.
        """
        self.folder = folder
        self._spare = spare_bytes
        self._verified: dict[str, _Mark] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from None

    def put(self, data: bytes | Iterable[bytes]) -> BlobRef:
        """Store a whole blob, of one piece or of pieces, and return its reference.

        Raises:
            StorageError: disk full or not writable.
        """
        pieces = [data] if isinstance(data, bytes) else data
        temporary = self.folder / f".new-{os.getpid()}-{os.urandom(8).hex()}"
        try:
            blob = self._spool(temporary, pieces)
            self._publish(temporary, blob)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        return blob

    def has(self, blob: BlobRef) -> bool:
        """Return whether the blob is complete here."""
        try:
            return self._file(blob).stat().st_size == blob.length
        except FileNotFoundError:
            return False

    def path(self, blob: BlobRef) -> Path:
        """Return the file of a complete blob (not verified again; `read` does).

        Raises:
            StorageError: it is not here.
        """
        if not self.has(blob):
            raise StorageError(
                "blob-missing", f"blob {blob.digest} is not in {self.folder}", next_step="run the round again"
            )
        return self._file(blob)

    def read(self, blob: BlobRef) -> bytes:
        """Return a complete blob after verifying its digest.

        Raises:
            StorageError: it is not here.
            VerificationError: the file was altered on disk.
        """
        data = self.path(blob).read_bytes()
        if hashlib.sha256(data).hexdigest() != _hex(blob):
            raise _wrong_digest(blob)
        return data

    def open(self, blob: BlobRef) -> BinaryIO:
        """Open a complete blob after verifying its digest; see `verify`."""
        self.verify(blob)
        try:
            return self.path(blob).open("rb")
        except OSError as error:
            raise _unusable(self.folder, error) from None

    def verify(self, blob: BlobRef) -> None:
        """Return if the complete blob's bytes have its digest, without holding them in memory.

        Raises:
            StorageError: it is not here.
            VerificationError: the file was altered on disk.
        """
        path = self.path(blob)
        mark = _mark(path)  # before the bytes are read: a change meanwhile shows the next time
        if self._verified.get(_hex(blob)) == mark:
            return
        if _digest_of(path) != _hex(blob):
            raise _wrong_digest(blob)
        self._verified[_hex(blob)] = mark

    def remove(self, blob: BlobRef) -> None:
        """Remove a blob and its partial uploads, if they are there."""
        self._verified.pop(_hex(blob), None)
        for path in [self._file(blob), *self.folder.glob(f"{_hex(blob)}.*.part")]:
            path.unlink(missing_ok=True)

    def prune(self, keep: Iterable[BlobRef]) -> None:
        """Remove everything but `keep`: other blobs, partial uploads, files of a crash."""
        names = {_hex(blob) for blob in keep}
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def received(self, blob: BlobRef, owner: str) -> int:
        """Return how many bytes of `owner`'s upload are here (its length once complete)."""
        if self.has(blob):
            return blob.length
        try:
            return min(self._part(blob, owner).stat().st_size, blob.length)
        except FileNotFoundError:
            return 0

    def write(self, blob: BlobRef, owner: str, offset: int, data: bytes) -> int:
        """Add `data` at `offset` to an upload and return how many bytes are here.

        Raises:
            ProtocolError: a gap before `offset`, or bytes beyond the declared length.
            StorageError: disk full or not writable.
        """
        here = self.received(blob, owner)
        if offset > here or offset + len(data) > blob.length or blob.length > MAX_BLOB_BYTES:
            raise ProtocolError(
                "blob-out-of-range",
                f"bytes {offset} to {offset + len(data)} do not continue a blob of {blob.length} at {here}",
                next_step="ask for the received offset (StatBlob) and continue there",
            )
        if here == 0 and offset == 0:
            self._require_space(blob.length)
        try:
            handle = os.open(self._part(blob, owner), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                _write_all(handle, data, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        return max(here, offset + len(data))

    def finish(self, blob: BlobRef, owner: str) -> None:
        """Verify a fully received upload and make it a blob.

        Raises:
            ProtocolError: bytes are missing.
            VerificationError: the digest differs; the upload is thrown away.
            StorageError: not writable.
        """
        if self.has(blob):
            return
        part = self._part(blob, owner)
        if self.received(blob, owner) != blob.length:
            raise ProtocolError(
                "blob-incomplete", "the upload ended before its declared length", next_step="resume the upload"
            )
        try:
            part.touch(mode=0o600)  # an empty blob has no chunk
            mark = _mark(part)
            if _digest_of(part) != _hex(blob):
                part.unlink(missing_ok=True)
                raise _wrong_digest(blob)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            self._publish(part, blob)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        self._verified[_hex(blob)] = mark

    def _spool(self, path: Path, pieces: Iterable[bytes]) -> BlobRef:
        digest, length = hashlib.sha256(), 0
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for piece in pieces:
                digest.update(piece)
                length += len(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return BlobRef(digest="sha256:" + digest.hexdigest(), length=length)

    def _publish(self, source: Path, blob: BlobRef) -> None:
        source.rename(self._file(blob))
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _require_space(self, length: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < length + self._spare:
            raise _disk_full(
                f"{self.folder} has {free >> 20} MiB free; this blob needs {length >> 20} MiB and a reserve"
            )

    def _file(self, blob: BlobRef) -> Path:
        return self.folder / _hex(blob)

    def _part(self, blob: BlobRef, owner: str) -> Path:
        if not _OWNER.fullmatch(owner):
            raise ValueError(f"not an owner name: {owner!r}")
        return self.folder / f"{_hex(blob)}.{owner}.part"


def chunks(path: Path, offset: int = 0, size: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a file from `offset` to its end."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(size):
            yield offset, data
            offset += len(data)


def _hex(blob: BlobRef) -> str:
    return blob.digest.removeprefix("sha256:")


def _mark(path: Path) -> _Mark:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _wrong_digest(blob: BlobRef) -> VerificationError:
    return VerificationError(
        "blob-wrong-digest",
        f"the bytes are not blob {blob.digest}",
        next_step="send it again from the start; if it happens again, check the disk of the sender",
    )


def _disk_full(text: str) -> StorageError:
    return StorageError("disk-full", text, next_step="free space on that disk; the transfer then goes on by itself")


def _unusable(folder: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(f"no space left in {folder}")
    return StorageError(
        "blob-folder-unusable",
        f"cannot use {folder}: {error.strerror}",
        next_step="check that the folder is there and is yours",
    )
