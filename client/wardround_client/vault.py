"""Secrets at rest: round seeds and optimiser states, sealed under a key file that backups leave out.

Rules (docs/spec/envelope.md, "Secrets at rest").
- Everything is sealed under `keys/local.key` (mode 0600, made on first use) with its name; a file copied to
  another name does not open, and neither does any file without that key.
- Backups must leave out `local.key`: a restored hospital then cannot reuse an old round seed.
- Writing is durable on return, and a crash leaves the old content or the new.
- `destroy` unlinks the file. It does not overwrite: journals, snapshots and flash remap blocks, so the old sectors may
  survive, sealed. Whoever needs them unreadable for sure must destroy `local.key` on a medium that forgets.
Not done here: history. An older file put back under its own name opens; the ledger decides what still counts.

    >>> vault = Vault(home.sealed, home.local_key)
    >>> vault.seal("0123456789abcdef-seed-1", seed)
    >>> vault.open("0123456789abcdef-seed-1") == seed
    True
"""

import base64
import os
import re
import stat
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardround_common.envelope.stream import StreamBroken, open_stream, seal_stream
from wardround_common.errors import StorageError
from wardround_common.files import sync_folder, write_durably

_MAGIC = b"wardround-sealed\x00\x01"
_SALT = 32
_PREFIX = b"wardround-local-key:1:"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_LEFTOVER = re.compile(r"^\.(.*)\.[0-9]+\.new$")  # what `write_durably` writes aside


class Vault:
    """Sealed files in one folder. The repr shows the folder and nothing else.

    Args:
        folder: where sealed files lie; created on first use.
        key: the local key's file; created on first use.
    """

    def __init__(self, folder: Path, key: Path) -> None:
        self._folder = folder
        self._key = key

    def __repr__(self) -> str:
        return f"Vault({str(self._folder)!r})"

    def seal(self, name: str, data: bytes) -> None:
        """Store `data` under `name`, replacing what was there; durable on return.

        Raises:
            StorageError: not written, or the key file is unusable.
            ValueError: `name` is not lower-case letters, digits and dashes (misuse).
        """
        path, head = self._path(name), _MAGIC + os.urandom(_SALT)
        key = _derive(self._local_key(create=True), head[len(_MAGIC) :], name)
        write_durably(path, seal_stream(key, data, header=head), mode=0o600)

    def open(self, name: str) -> bytes:
        """Return what was sealed under `name`.

        Raises:
            StorageError: missing, altered, moved, or sealed under another local key.
        """
        try:
            sealed = self._path(name).read_bytes()
        except OSError as error:
            raise _unreadable(name, error.strerror or "unknown error") from None
        salt = sealed[len(_MAGIC) : len(_MAGIC) + _SALT]
        if not sealed.startswith(_MAGIC) or len(salt) != _SALT:
            raise _unreadable(name, "not a sealed file")
        try:
            key = _derive(self._local_key(create=False), salt, name)
            return open_stream(key, memoryview(sealed)[len(_MAGIC) + _SALT :])
        except StreamBroken:
            raise _unreadable(name, "altered, moved, or sealed under another local.key") from None

    def holds(self, name: str) -> bool:
        """Return whether something is stored under `name`; says nothing about whether it opens."""
        return self._path(name).exists()

    def destroy(self, name: str) -> None:
        """Unlink `name` and what a killed writer left of it, durably; nothing happens if it is not there.

        See the module on what that does not do.

        Raises:
            StorageError: it could not be removed.
        """
        path = self._path(name)
        found = [place for place in (path, *self._folder.glob(f".{name}.*.new")) if place.exists()]
        if not found:
            return
        try:
            for place in found:
                place.unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise StorageError(
                "vault-not-destroyed",
                f"cannot remove the secret {name}: {error.strerror}",
                next_step="mend the permissions of state/sealed, then start again",
            ) from None

    def names(self, prefix: str) -> tuple[str, ...]:
        """Return the names that begin with `prefix` and have something on disk, be it what a killed writer left.

        Raises:
            ValueError: `prefix` is not lower-case letters, digits and dashes (misuse).
        """
        self._path(prefix)
        found = {_LEFTOVER.sub(r"\1", path.name) for path in self._folder.glob("*")}
        return tuple(sorted(name for name in found if name.startswith(prefix) and _NAME.fullmatch(name)))

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError("a vault name is lower-case letters, digits and dashes")
        return self._folder / name

    def _local_key(self, *, create: bool) -> bytes:
        try:
            return _read_key(self._key)
        except FileNotFoundError:
            if not create:
                raise _unreadable("every secret", "local.key is gone") from None
        line = _PREFIX + base64.b64encode(os.urandom(32)) + b"\n"
        aside = self._key.with_name(f".{self._key.name}.{os.getpid()}.first")
        write_durably(aside, line, mode=0o600)
        try:
            os.link(aside, self._key)  # unlike a rename, never replaces a key that another process just made
            sync_folder(self._key.parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise _key_unusable(self._key, error.strerror or "unknown error") from None
        finally:
            aside.unlink(missing_ok=True)
        return _read_key(self._key)


def _read_key(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            exposed = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            line = file.read(200)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _key_unusable(path, error.strerror or "unknown error") from None
    if exposed:
        raise StorageError(
            "local-key-exposed", f"{path} can be read by others", next_step=f"chmod 600 {path}, and ask who had access"
        )
    try:
        key = base64.b64decode(line.removeprefix(_PREFIX).removesuffix(b"\n"), validate=True)
    except ValueError:
        key = b""
    if len(key) != 32 or not line.startswith(_PREFIX):
        raise _key_unusable(path, "not a local key")
    return key


def _derive(local_key: bytes, salt: bytes, name: str) -> bytes:
    info = b"wardround/sealed/1\n" + name.encode()
    return HKDF(hashes.SHA256(), 32, salt, info).derive(local_key)


def _unreadable(name: str, why: str) -> StorageError:
    return StorageError(
        "vault-unreadable",
        f"cannot open the secret {name}: {why}",
        next_step="rounds that were open are lost and stay spent: remove state/sealed and start again",
    )


def _key_unusable(path: Path, why: str) -> StorageError:
    return StorageError(
        "local-key-unusable",
        f"cannot use {path}: {why}",
        next_step="restore it, or remove it together with state/sealed: open rounds are then lost and stay spent",
    )
