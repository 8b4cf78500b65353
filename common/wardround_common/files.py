"""Writing small files so that a crash leaves the old content or the new, never a mixture.

Rules. Write aside, fsync, rename, fsync the folder; on any failure the old file is untouched and
nothing is left aside. Files that hold secrets are created with mode 0600 from the start.

    >>> write_durably(Path("state.json"), b"{}")  # doctest: +SKIP
"""

import os
from pathlib import Path

from wardround_common.errors import ConfigError, StorageError


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` durably; missing folders are created.

    Raises:
        StorageError: it could not be written; an old file is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(
            "file-not-written",
            f"cannot write {path}: {error.strerror}",
            next_step="free disk space or mend the permissions, then try again",
        ) from None


def write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet, durably.

    Raises:
        ConfigError: it exists.
        StorageError: it could not be written.
    """
    if path.exists():
        raise ConfigError("file-exists", f"{path} exists already", next_step="choose another name with --out")
    write_durably(path, data)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
