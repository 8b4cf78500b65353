"""Writing small files so that a crash leaves the old content or the new, never a mixture.

Rules. Write aside, fsync, rename, fsync the folder; on any failure the old file is untouched and
nothing is left aside. Files that hold secrets are created with mode 0600 from the start. Threads and
processes that write the same file do not disturb each other: the last one to finish wins.

    >>> write_durably(Path("state.json"), b"{}")  # doctest: +SKIP
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from wardround_common.errors import ConfigError, StorageError


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` durably; missing folders are created.

    Raises:
        StorageError: it could not be written; an old file is untouched.
    """
    write_parts(path, [data], mode=mode)


def write_parts(path: Path, parts: Iterable[bytes], *, mode: int = 0o644) -> None:
    """Replace `path` durably by `parts`, which are written as they come; see `write_durably`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{threading.get_native_id()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
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
    except BaseException:  # whoever makes the parts failed
        aside.unlink(missing_ok=True)
        raise


def write_new(path: Path, *parts: bytes) -> None:
    """Write a file that does not exist yet, durably.

    Raises:
        ConfigError: it exists.
        StorageError: it could not be written.
    """
    require_new(path)
    write_parts(path, parts)


def require_new(path: Path) -> None:
    """Raise if `path` exists.

    Raises:
        ConfigError: it does.
    """
    if path.exists():
        raise ConfigError("file-exists", f"{path} exists already", next_step="choose another name for the new file")


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
