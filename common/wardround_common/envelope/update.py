"""A sealed update: the file in which one hospital's update travels (docs/spec/envelope.md).

Rules.
- A fresh data key for every file, wrapped by HPKE for the study's key with `info`; `info` binds study, round
  and site, so an update opens as nothing else.
- The body key is derived from data key and header: header, wrapped key and body belong together or not at all.
- Opening says one thing, `sealed-update-unreadable`, whatever was wrong. Pieces count only after the last one held.
Not done here: who sent it (the signed `UpdateHeader`), what it contains (`adapter`).

    >>> info = update_info(study.sha256(), 1, "st-elsewhere")
    >>> sealed = seal_update(b"update", public_key, info)
    >>> b"".join(open_update(lambda: io.BytesIO(sealed), private_key, info)())
    b'update'
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardround_common.envelope.hpke import OVERHEAD, SEED, PrivateKey, WrapBroken, unwrap, wrap
from wardround_common.envelope.stream import StreamBroken, open_chunks, seal_stream, sealed_length
from wardround_common.errors import StorageError, VerificationError
from wardround_common.files import sync_folder

MAX_UPDATE_BYTES = 4 * (1 << 31) + (1 << 20)
"""What the largest adapter that a study can name fills in float32, with its safetensors header."""

_MAGIC = b"wardround-update"
_FIXED = struct.Struct(">16sHHQ")
_VERSION = 1
_DATA_KEY = 32
_WRAPPED = _DATA_KEY + OVERHEAD
_HEADER = _FIXED.size + _WRAPPED


def update_info(study: str, round_: int, site: str) -> bytes:
    """Return the 32 bytes that bind an update to a study (digest), a round and a site."""
    lines = ("wardround/update-info/1", study, str(round_), site)
    if any("\n" in line for line in lines):
        raise ValueError("study and site are single lines")
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).digest()


def seal_update(plaintext: bytes, public_key: str, info: bytes) -> bytes:
    """Return `plaintext` sealed to the study's `public_key` (base64) for `info`.

    Raises:
        VerificationError: not an X-Wing public key, or the update is larger than any study's.
    """
    if len(plaintext) > MAX_UPDATE_BYTES:
        raise _too_large(len(plaintext), MAX_UPDATE_BYTES)
    data_key = os.urandom(_DATA_KEY)
    fixed = _FIXED.pack(_MAGIC, _VERSION, _WRAPPED, len(plaintext))
    header = fixed + wrap(data_key, public_key, info)
    return seal_stream(_body_key(data_key, header), plaintext, header=header)


def open_update(
    source: Callable[[], BinaryIO], key: PrivateKey, info: bytes, *, limit: int = MAX_UPDATE_BYTES
) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields the plaintext of a sealed update in pieces, as often as it is called.

    Args:
        source: opens the whole file, hostile, from its start.
        key: the study's private key.
        info: `update_info` of the study, round and site that the signed header names.
        limit: largest plaintext in bytes.

    Raises:
        VerificationError: too large, or anything at all does not hold; the function too, at any piece.
    """
    with source() as file:
        header, length = _parse(file)
    if length > limit:
        raise _too_large(length, limit)
    try:
        body_key = _body_key(unwrap(header[_FIXED.size :], key, info), header)
    except WrapBroken:
        raise _unreadable() from None

    def pieces() -> Iterator[bytes]:
        with source() as file:
            file.seek(_HEADER)
            try:
                yield from open_chunks(body_key, file, sealed_length(length))
            except StreamBroken:
                raise _unreadable() from None

    return pieces


def new_update_key(path: Path) -> str:
    """Make a study's key, write its private half to `path` (new, mode 0600), return the public half in base64.

    Raises:
        StorageError: `path` exists or cannot be written.
    """
    key = PrivateKey.from_seed(os.urandom(SEED))
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.to_pem())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            "update-key-not-written",
            f"cannot create {path}: {error.strerror}",
            next_step="a study's key is never replaced: choose another study name, or free the path",
        ) from None
    return key.public_text


def load_update_key(path: Path) -> PrivateKey:
    """Return the study's private key in `path`.

    Raises:
        StorageError: missing, unreadable, or readable by others.
        VerificationError: not an X-Wing key.
    """
    try:
        with path.open("rb") as file:
            exposed = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            pem = file.read(4096)
    except OSError as error:
        raise StorageError(
            "update-key-unreadable",
            f"cannot read {path}: {error.strerror}",
            next_step="restore the file from the server's backup",
        ) from None
    if exposed:
        raise StorageError(
            "update-key-exposed", f"{path} can be read by others", next_step=f"chmod 600 {path}, and ask who had access"
        )
    return PrivateKey.from_pem(pem)


def _parse(file: BinaryIO) -> tuple[bytes, int]:
    """Return (header, plaintext length) of a file whose lengths fit together."""
    header, total = file.read(_HEADER), file.seek(0, os.SEEK_END)
    if len(header) < _HEADER:
        raise _unreadable()
    magic, version, wrapped, length = _FIXED.unpack_from(header)
    if (magic, version, wrapped) != (_MAGIC, _VERSION, _WRAPPED) or total != _HEADER + sealed_length(length):
        raise _unreadable()
    return header, length


def _body_key(data_key: bytes, header: bytes) -> bytes:
    salt = hashlib.sha256(header).digest()
    return HKDF(hashes.SHA256(), 32, salt, b"wardround/update-body/1").derive(data_key)


def _unreadable() -> VerificationError:
    return VerificationError(
        "sealed-update-unreadable",
        "the sealed update does not open as this study's, round's and site's",
        next_step="refuse it; if it lasts, compare the study's digest and wardround versions with the site",
    )


def _too_large(length: int, limit: int) -> VerificationError:
    return VerificationError(
        "sealed-update-too-large",
        f"an update of {length} bytes where at most {limit} are allowed",
        next_step="refuse it; if it lasts, compare wardround versions with the site",
    )
