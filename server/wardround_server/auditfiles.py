"""The few file-system calls that the audit log's writer makes, as an object that tests replace.

Rules. A file is written under a temporary name, synced, renamed, and then its folder is synced; only then does
it count. New folders are synced into their parents first. Nothing here decides what to write.

    >>> publish(OsFiles(), {Path("audit/log/checkpoint"): b"..."})  # doctest: +SKIP
"""

import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Protocol

from wardround_common.errors import StorageError
from wardround_server.auditerrors import write_failed

TEMPORARY = ".tmp"
"""Suffix of a file that does not count yet."""


class Files(Protocol):
    """What `publish` and the writer need; every method may raise OSError."""

    def mkdir(self, path: Path) -> None:
        """Create one folder; its parent exists."""

    def write(self, path: Path, data: bytes, mode: int) -> None:
        """Create or truncate a file and write all of `data`."""

    def append(self, path: Path, data: bytes) -> None:
        """Add all of `data` to the end of a file, created if it is missing (mode 0600), and make it durable."""

    def sync(self, path: Path) -> None:
        """Make a file's content durable."""

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target`."""

    def sync_folder(self, path: Path) -> None:
        """Make a folder's entries durable."""

    def unlink(self, path: Path) -> None:
        """Remove a file; a missing one is no error."""


class OsFiles:
    """The operating system's files."""

    def mkdir(self, path: Path) -> None:
        """Create one folder; an existing one is no error."""
        path.mkdir(exist_ok=True)

    def write(self, path: Path, data: bytes, mode: int) -> None:
        """Create or truncate a file and write all of `data`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(path, flags, mode), "wb") as file:
            file.write(data)

    def append(self, path: Path, data: bytes) -> None:
        """Add all of `data` to the end of a file, created if it is missing, and make it durable."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        # One descriptor for both calls: the kernel reports a failed write-back to whoever had the file open.
        with open(os.open(path, flags, 0o600), "ab") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())

    def sync(self, path: Path) -> None:
        """Make a file's content durable."""
        _sync(path, os.O_RDONLY)

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target`."""
        os.replace(source, target)

    def sync_folder(self, path: Path) -> None:
        """Make a folder's entries durable."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)

    def unlink(self, path: Path) -> None:
        """Remove a file; a missing one is no error."""
        path.unlink(missing_ok=True)


def publish(files: Files, contents: Mapping[Path, bytes], *, mode: int = 0o644) -> None:
    """Write files durably: all are there after a return, each is whole or absent after a crash.

    Raises:
        OSError: something failed; temporary files may be left.
    """
    for path in contents:
        make_folder(files, path.parent)
    for path, data in contents.items():
        temporary = path.with_name(path.name + TEMPORARY)
        files.write(temporary, data, mode)
        files.sync(temporary)
    for path in contents:
        files.rename(path.with_name(path.name + TEMPORARY), path)
    for folder in dict.fromkeys(path.parent for path in contents):
        files.sync_folder(folder)


def make_folder(files: Files, folder: Path) -> None:
    """Create `folder` and its missing parents, durably."""
    if folder.is_dir():
        return
    make_folder(files, folder.parent)
    files.mkdir(folder)
    files.sync_folder(folder.parent)


def lock_folder(files: Files, folder: Path) -> IO[bytes]:
    """Return the open, locked `.lock` of a log's folder; closing it releases the folder.

    Raises:
        StorageError: audit-locked, or it cannot be made.
    """
    try:
        make_folder(files, folder)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115 - held for the log's life
    except OSError as error:
        raise write_failed(error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise write_failed(error) from None
        raise StorageError(
            "audit-locked",
            f"another process writes the audit log in {folder}",
            next_step="stop the other server of this home first",
        ) from None
    return lock


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
