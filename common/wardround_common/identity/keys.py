"""Key pairs and their files.

Rules (docs/spec/identity.md).
- Identities are Ed25519: they sign studies, bindings, approvals and checkpoints. Transport and
  certificate authority keys are ECDSA P-256, because gRPC refuses Ed25519 leaf certificates.
- A private key file is PEM PKCS #8 with mode 0600, is never overwritten, and is refused if group
  or others may read it. A public key file is one line, `ed25519:<base64>`.
- Files are written whole: content and folder entry are flushed before the call returns.
Not done here: what a key is trusted for.

    >>> key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    >>> node_id(public_key_text(key.public_key())) < 2**63
    True
"""

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, StorageError, VerificationError
from wardround_common.files import sync_folder
from wardround_common.signing import parse_public_key, public_key_text

MAX_KEY_FILE_BYTES = 64 * 1024
"""A PKCS #8 key has 250 bytes and an invite 3 kB; a larger file is not one and is not read into memory."""


def new_identity_key() -> Ed25519PrivateKey:
    """Return a new Ed25519 identity, from the operating system's randomness."""
    return Ed25519PrivateKey.generate()


def new_transport_key() -> ec.EllipticCurvePrivateKey:
    """Return a new ECDSA P-256 key for TLS or a certificate authority."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return `key` as unencrypted PEM PKCS #8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def transport_digest(key: ec.EllipticCurvePublicKey) -> str:
    """Return `sha256:…` of the key's SubjectPublicKeyInfo in DER."""
    return sha256_digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def node_id(identity: str) -> int:
    """Return Flower's node id of an `ed25519:` identity: SHA-256's first 63 bits of the raw key."""
    raw = parse_public_key(identity).public_bytes_raw()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") >> 1


def write_private(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600 and flush it and its folder.

    Raises:
        StorageError: the file exists already or cannot be written.
    """
    _create(path, data, 0o600)


def write_private_key(path: Path, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
    """Create the key file `path` (see `write_private`)."""
    write_private(path, private_pem(key))


def write_public_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Create `path` with the public half of `key` in one line.

    Raises:
        StorageError: the file exists already or cannot be written.
    """
    write_public(path, public_key_text(key.public_key()).encode() + b"\n")


def write_public(path: Path, data: bytes) -> None:
    """Create `path` with mode 0644, for certificates and public keys.

    Raises:
        StorageError: the file exists already or cannot be written.
    """
    _create(path, data, 0o644)


def read_file(path: Path) -> bytes:
    """Return the bytes of a small file that holds no secret (a certificate, a public key).

    Raises:
        ConfigError: missing, unreadable or too large.
    """
    return _read(path)[0]


def read_private(path: Path) -> bytes:
    """Return the bytes of a file that only its owner may read.

    Raises:
        ConfigError: missing, unreadable, readable by others, or too large.
    """
    data, mode = _read(path)
    if mode & 0o077:
        raise ConfigError(
            "key-file-permissions",
            f"{path} holds a secret and can be read by others (mode {mode & 0o777:o})",
            next_step=f"run: chmod 600 {path}",
        )
    return data


def load_identity_key(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key of a 0600 PEM file.

    Raises:
        ConfigError: missing, readable by others, or not an Ed25519 key.
    """
    key = _load(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise _malformed(path, "an Ed25519 private key")
    return key


def load_transport_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the ECDSA P-256 key of a 0600 PEM file.

    Raises:
        ConfigError: missing, readable by others, or not a P-256 key.
    """
    key = _load(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _malformed(path, "an ECDSA P-256 private key")
    return key


def load_public_key(path: Path) -> str:
    """Return the `ed25519:<base64>` line of a public key file.

    Raises:
        ConfigError: missing, or not one public key.
    """
    data, _ = _read(path)
    try:
        return public_key_text(parse_public_key(data.decode().strip()))
    except (UnicodeDecodeError, VerificationError):
        raise _malformed(path, "a public key (ed25519:…)") from None


def _load(path: Path) -> object:
    data = read_private(path)
    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _malformed(path, "a PEM private key without a password") from None


def _read(path: Path) -> tuple[bytes, int]:
    """Return (content, mode) of one open file, so that both belong to the same inode."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _malformed(path, "a regular file")
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            "key-file-missing", f"there is no {path}", next_step="check the path and that the home was set up"
        ) from None
    except OSError as error:
        raise ConfigError(
            "key-file-unreadable",
            f"cannot read {path}: {error.strerror}",
            next_step="run as the user that owns the file",
        ) from None
    if len(data) > MAX_KEY_FILE_BYTES:
        raise _malformed(path, f"a key: it is larger than {MAX_KEY_FILE_BYTES} bytes")
    return data, status.st_mode


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask may have taken bits of 0644 away
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except FileExistsError:
        raise StorageError(
            "file-exists", f"{path} exists already and is not overwritten", next_step="choose another path, or move it"
        ) from None
    except OSError as error:
        raise StorageError(
            "file-not-writable",
            f"cannot write {path}: {error.strerror}",
            next_step="check that the folder exists, is yours and has space",
        ) from None


def _malformed(path: Path, what: str) -> ConfigError:
    return ConfigError(
        "key-file-malformed", f"{path} is not {what}", next_step="restore the file from where it was made"
    )
