"""A backup of a home: one sealed file, and a new home from it.

Rules.
- A backup holds private keys, so it never lies on a disk in plain: a tar, encrypted to age recipients while it is
  written. `age --decrypt -i KEY FILE | tar -x` opens it without wardround.
- What is taken, and in which order, is a list of globs that the role names; whatever is on no list stays out. A later
  glob is read later: a role lists what must not be newer than another file before it.
- A SQLite file is copied through SQLite inside one transaction, so its owner may run meanwhile.
- A backup is restored into a new folder only, which appears when all of it is there. Nothing but plain files comes out.
- The seal keeps others from reading; it does not say who wrote the file. Whoever restores compares the fingerprint of
  the identity key that came out.
Not done here: which files (each role's `cli_backup`), finding out that a restored home is old (docs/backup.md).

    >>> write_backup(home, Path("site.backup"), take=("client.toml", "state/ledger.db"), role="client",
    ...              recipients=[recipient])  # doctest: +SKIP
    12
"""

import os
import shutil
import sqlite3
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, Literal

import pyrage
from pydantic import Field

from wardround_common import __version__
from wardround_common.documents import Document, canonical_json, parse_json
from wardround_common.errors import ConfigError, StorageError, VerificationError, WardroundError
from wardround_common.files import require_new, sync_folder, write_parts

Role = Literal["server", "client"]

HEAD = "wardround-backup.json"
"""Name of the first file of the tar."""

STEADY = "keys/*"
"""A key and its certificate are two files: they must be from one moment."""

MAX_HEAD_BYTES = 1 << 16
_CHUNK = 1 << 20
_BUSY_S = 15.0


class Head(Document):
    """What the backup is of."""

    format: Literal["wardround/backup/1"] = "wardround/backup/1"
    role: Role
    version: str  # of wardround
    created: Annotated[int, Field(ge=0)]  # Unix seconds


# -- writing


def write_backup(
    home: Path,
    out: Path,
    *,
    take: Sequence[str],
    role: Role,
    recipients: Sequence[Any],
    clock: Callable[[], float] = time.time,
) -> int:
    """Write a sealed backup of `home` to the new file `out` (0600) and return its size in bytes.

    Args:
        home: the folder.
        out: the file.
        take: globs below `home`, in the order in which they are read; `*.db` are SQLite files.
        role: whose home it is.
        recipients: pyrage recipients; whoever holds one of their identities can restore.
        clock: Unix seconds.

    Raises:
        ConfigError: `out` exists.
        StorageError: a file cannot be read, changed while it was read, or `out` cannot be written; no `out` is left.
    """
    require_new(out)
    head = Head(role=role, version=__version__, created=int(clock()))
    keys = _states(home, STEADY)
    aside = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with _encrypting(file, recipients) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
                _add(tar, HEAD, canonical_json(head.model_dump(mode="json")))
                for path in _matching(home, take):
                    _add_file(tar, home, path)
            if _states(home, STEADY) != keys:
                raise _changed()
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, out)
        sync_folder(out.parent)
    except OSError as error:
        raise StorageError(
            "backup-not-written",
            f"the backup was not written: {error.strerror or 'a file changed while it was read'}",
            next_step="make room or mend the permissions, then run it again; the home was not changed",
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return out.stat().st_size


def _matching(home: Path, take: Sequence[str]) -> Iterator[Path]:
    """Yield every plain file that a glob matches, once; a glob is looked at when those before it are done with."""
    seen = set[Path]()
    for pattern in take:
        for path in sorted(set(home.glob(pattern)) - seen):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):  # a lock, a crash's leftover
                seen.add(path)
                yield path


def _add_file(tar: tarfile.TarFile, home: Path, path: Path) -> None:
    name = path.relative_to(home).as_posix()
    if path.suffix == ".db":
        return _add(tar, name, _snapshot(path))
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return None  # done with meanwhile
    with source:
        status = os.fstat(source.fileno())
        return tar.addfile(_entry(name, status.st_size, mode=status.st_mode), source)


def _states(home: Path, pattern: str) -> dict[str, tuple[int, int]]:
    found = [(path.name, path.stat()) for path in home.glob(pattern)]
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found}


def _changed() -> StorageError:
    return StorageError(
        "backup-keys-changed",
        "keys were renewed while the backup was written",
        next_step="run it again; no backup was written",
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_entry(name, len(data)), BytesIO(data))


def _entry(name: str, size: int, mode: int = 0o600) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, mode & 0o700, int(time.time())
    return entry


def _snapshot(path: Path) -> bytes:
    """Return a SQLite file as it is between two transactions."""
    try:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=_BUSY_S)) as source,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            return copy.serialize()
    except sqlite3.Error as error:
        raise StorageError(
            "backup-database",
            f"{path} cannot be copied: {error}",
            next_step="is it damaged, or held by a hanging process? `doctor` says more; no backup was written",
        ) from None


@contextmanager
def _encrypting(file: BinaryIO, recipients: Sequence[Any]) -> Iterator[BinaryIO]:
    """Yield a stream; what is written to it arrives in `file`, encrypted, when the block ends."""
    read, write = os.pipe()
    failed: list[BaseException] = []

    def encrypt() -> None:
        with open(read, "rb") as source:  # closing it wakes the writer where encryption fails
            try:
                pyrage.encrypt_io(source, file, list(recipients))
            except BaseException as error:
                failed.append(error)

    worker = threading.Thread(target=encrypt, name="backup", daemon=True)
    worker.start()
    stream = open(write, "wb")  # noqa: SIM115 - closed below, before the worker is waited for
    try:
        yield stream
    finally:
        with suppress(BrokenPipeError):  # `failed` says why
            stream.close()
        worker.join()
        if failed:
            error = failed[0]
            raise error if isinstance(error, OSError) else OSError(str(error)) from None


# -- restoring


def restore_backup(file: Path, home: Path, *, role: Role, identity: Any) -> Head:
    """Make the new folder `home` from the backup `file` and return what the backup says of itself.

    Args:
        file: what `write_backup` wrote.
        home: a folder that does not exist.
        role: whose home it must be.
        identity: a pyrage identity.

    Raises:
        ConfigError: `home` exists, or `file` cannot be read or is of the other role.
        VerificationError: it does not open with `identity`, was cut off or altered, or is no backup.
        StorageError: `home` cannot be written. In all cases no `home` is left.
    """
    require_new(home)
    staged = home.with_name(f".{home.name}.restoring")
    if staged.exists():
        shutil.rmtree(staged)  # of a restore that was cut off
    try:
        staged.mkdir(mode=0o700, parents=True)
        with _decrypting(file, identity) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            head = _head(tar, role)
            while (entry := tar.next()) is not None:
                _extract(tar, entry, staged)
        os.rename(staged, home)
        sync_folder(home.parent)
    except tarfile.TarError:
        raise _malformed("it is no tar") from None
    except OSError as error:
        raise StorageError(
            "backup-not-restored",
            f"{home} was not restored: {error.strerror}",
            next_step="make room or mend the permissions, then run it again",
        ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return head


def _head(tar: tarfile.TarFile, role: Role) -> Head:
    entry = tar.next()
    source = tar.extractfile(entry) if entry is not None and entry.name == HEAD and entry.isreg() else None
    if source is None:
        raise _malformed(f"it does not begin with {HEAD}")
    try:
        head = Head.model_validate(parse_json(source.read(MAX_HEAD_BYTES)))
    except (WardroundError, ValueError):
        raise _malformed("its head is of a newer version, or damaged") from None
    if head.role != role:
        raise ConfigError(
            "backup-other-role",
            f"this is the backup of a {head.role}'s home",
            next_step=f"restore it with: wardround {head.role} restore",
        )
    return head


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    source = tar.extractfile(entry) if entry.isreg() else None
    name = PurePosixPath(entry.name)
    escapes = name.is_absolute() or ".." in name.parts or not name.parts or not entry.name.isprintable()
    if source is None or escapes or (folder / name).exists():
        raise _malformed("it holds something that no backup has")
    path = folder / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_parts(path, iter(lambda: source.read(_CHUNK), b""), mode=entry.mode & 0o700)


@contextmanager
def _decrypting(file: Path, identity: Any) -> Iterator[BinaryIO]:
    """Yield the plain stream; age gives out only what it has authenticated, and the block fails if it ends early."""
    try:
        sealed = file.open("rb")
    except OSError as error:
        raise ConfigError(
            "backup-missing", f"cannot read {file}: {error.strerror}", next_step="give the file that `backup` wrote"
        ) from None
    read, write = os.pipe()
    failed: list[BaseException] = []

    def decrypt() -> None:
        with sealed, open(write, "wb") as target:
            try:
                pyrage.decrypt_io(sealed, target, [identity])
                target.flush()
            except BaseException as error:
                failed.append(error)

    worker = threading.Thread(target=decrypt, name="restore", daemon=True)
    worker.start()
    refused: Exception | None = None
    with open(read, "rb") as stream:
        try:
            yield stream
        except (tarfile.TarError, VerificationError) as error:
            refused = error  # unless the seal says why the stream is not what it should be
        except BaseException:
            stream.close()  # the worker ends on a broken pipe
            worker.join()
            raise
        while stream.read(_CHUNK):  # age's last chunk must be seen: without it the file was cut off
            pass
    worker.join()
    if failed:
        raise VerificationError(
            "backup-not-opened",
            f"{file} does not open: it is for another key, cut off or altered",
            next_step="give the identity file whose recipient the backup was made for, or take another copy",
        ) from None
    if refused is not None:
        raise refused


def _malformed(why: str) -> VerificationError:
    return VerificationError(
        "backup-malformed",
        f"this is no backup that wardround can restore: {why}",
        next_step="take another copy, or restore it with the wardround version that wrote it",
    )
