"""Checking a release folder against its signed provenance, for whoever received it.

Rules. Every file that the statement names must be there with its digest; a file that it does not
name is refused, so that nothing can be slipped in. Returns the verified statement or raises.
"""

import hashlib
from pathlib import Path
from typing import Any

from wardround_common.errors import VerificationError
from wardround_common.signing import Envelope, open_envelope, parse_public_key
from wardround_server.release.build import PROVENANCE
from wardround_server.release.provenance import STATEMENT_TYPE, statement_of

MAX_FILE_BYTES = 1 << 33
"""No adapter of ours comes near 8 GiB; larger files are not read."""


def check_release(folder: Path, operator: str) -> dict[str, Any]:
    """Return the statement of the release in `folder` after checking every file.

    Args:
        folder: a release folder.
        operator: the operator's `ed25519:` identity.

    Raises:
        VerificationError: a file is missing, altered or not named, or the signature does not hold.
    """
    try:
        envelope = Envelope.from_bytes((folder / PROVENANCE).read_bytes())
    except OSError:
        raise _altered(f"{folder} holds no {PROVENANCE}") from None
    open_envelope(envelope, STATEMENT_TYPE, [parse_public_key(operator)])
    statement = statement_of(envelope)
    named = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    found = {path.name for path in folder.iterdir()} - {PROVENANCE}
    if found != named.keys():
        raise _altered(f"the release holds {', '.join(sorted(found ^ named.keys()))} against its provenance")
    for name, digest in named.items():
        if _sha256(folder / name) != digest:
            raise _altered(f"{name} was altered after the release was signed")
    return statement


def _sha256(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _altered(f"{path.name} is larger than any release")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _altered(why: str) -> VerificationError:
    return VerificationError(
        "release-altered", why, next_step="get the release again from the operator; do not load it"
    )
