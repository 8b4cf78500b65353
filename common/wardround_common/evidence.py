"""Evidence of an incident: a folder with copies, a manifest of digests, and a signature over it.

Rules.
- Secrets are never copied: what to take is a list of globs that the role names, and private keys,
  sealed secrets, databases' side files and data are on none of them. A second check refuses any file
  that looks like a private key, whatever its name.
- Files are copied as they are, with their digests, sizes and times; the manifest is signed with the
  home's identity, so that a copy that was changed later is noticed (`verify_evidence`).
- Exporting changes nothing in the home and may run beside the program.
Not done here: saying what happened; that is for people (docs/incident-runbook.md).

    >>> export_evidence(home, out, globs=("audit/log/**/*",), key=identity, role="server")  # doctest: +SKIP
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints

from wardround_common import __version__
from wardround_common.documents import Digest, Document, sha256_digest
from wardround_common.errors import ConfigError, StorageError, VerificationError
from wardround_common.files import write_durably
from wardround_common.signing import Envelope, open_envelope, parse_public_key, sign_document

EVIDENCE_TYPE = "application/vnd.wardround.evidence+json"
"""DSSE payload type of a `Manifest`."""

MANIFEST = "evidence.json"

_SECRET = re.compile(rb"PRIVATE KEY-----|AGE-SECRET-KEY-|wardround-local-key")
_PROXY_PASSWORD = re.compile(rb"(://)[^/\s@\"]+@")
RelativePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-][A-Za-z0-9._/-]*$", max_length=300)]


class Item(Document):
    """One copied file."""

    path: RelativePath
    digest: Digest
    length: Annotated[int, Field(ge=0)]  # bytes
    modified: int  # Unix seconds


class Manifest(Document):
    """What was exported, when, and by which software."""

    format: Literal["wardround/evidence/1"] = "wardround/evidence/1"
    role: Literal["server", "client"]
    version: str
    exported: int  # Unix seconds
    items: tuple[Item, ...]


def export_evidence(
    home: Path,
    out: Path,
    *,
    globs: Sequence[str],
    key: Ed25519PrivateKey,
    role: Literal["server", "client"],
    now: float,
) -> Manifest:
    """Copy the files that match `globs` below `home` into the new folder `out`, with a signed manifest.

    Raises:
        ConfigError: `out` exists.
        StorageError: something cannot be read or written.
    """
    if out.exists():
        raise ConfigError("file-exists", f"{out} exists already", next_step="choose another folder with --out")
    paths = sorted({path for glob in globs for path in home.glob(glob) if path.is_file() and not path.is_symlink()})
    try:
        out.mkdir(parents=True, mode=0o700)
        items = tuple(item for path in paths if (item := _copy(home, path, out)) is not None)
    except OSError as error:
        raise StorageError(
            "evidence-incomplete",
            f"the evidence could not be written: {error.strerror}",
            next_step="remove the folder, free space or choose another disk, and export again",
        ) from None
    manifest = Manifest(role=role, version=__version__, exported=int(now), items=items)
    signed = sign_document(manifest.to_bytes(), EVIDENCE_TYPE, key)
    write_durably(out / MANIFEST, signed.to_bytes(), mode=0o600)
    return manifest


def _copy(home: Path, path: Path, out: Path) -> Item | None:
    name = path.relative_to(home).as_posix()
    data = path.read_bytes()
    if _SECRET.search(data):
        return None
    data = _PROXY_PASSWORD.sub(rb"\1[redacted]@", data) if path.suffix == ".toml" else data
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.write_bytes(data)
    shutil.copystat(path, target)
    target.chmod(0o600)
    return Item(path=name, digest=sha256_digest(data), length=len(data), modified=int(path.stat().st_mtime))


def verify_evidence(folder: Path, identity: str) -> Manifest:
    """Return the manifest if `identity` (an `ed25519:` key) signed it and every file is as it was.

    Raises:
        VerificationError: signature or a file does not hold.
        ProtocolError: not a manifest.
        ConfigError: there is none.
    """
    try:
        envelope = Envelope.from_bytes((folder / MANIFEST).read_bytes())
    except OSError:
        raise ConfigError(
            "evidence-missing", f"there is no {MANIFEST} in {folder}", next_step="give the folder that export wrote"
        ) from None
    manifest = Manifest.from_bytes(open_envelope(envelope, EVIDENCE_TYPE, [parse_public_key(identity)]))
    listed = {item.path for item in manifest.items}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(found ^ listed):
        raise _altered(f"{name} was {'added' if name in found else 'removed'} after the export")
    for item in manifest.items:
        if sha256_digest((folder / item.path).read_bytes()) != item.digest:
            raise _altered(f"{item.path} was changed after the export")
    return manifest


def _altered(why: str) -> VerificationError:
    return VerificationError(
        "evidence-altered", why, next_step="get the folder again from whoever exported it, and keep both copies"
    )
