r"""One entry's receipt: C2SP tlog-proof text, for a single entry and offline.

Rules. The proof counts only against a checkpoint that a quorum cosigned. Its `extra` line is not
authenticated and never looked at. What the entry says needs its message key as well (`seal.open_entry`).

    >>> format_proof(0, (), "operator.wardround\n1\n...").splitlines()[:2]
    ['c2sp.org/tlog-proof@v1', 'index 0']
"""

import base64
import re

from wardround_common.audit.tiles import leaf_hash, verify_inclusion
from wardround_common.audit.trust import Trust
from wardround_common.audit.witness import verify_quorum
from wardround_common.errors import VerificationError
from wardround_common.rounds import MAX_NOTE_BYTES

MAX_PROOF_CHARS = MAX_NOTE_BYTES + 8_192
"""A checkpoint and at most 80 hashes."""

_INDEX = re.compile(r"index (0|[1-9][0-9]{0,15})")


def format_proof(index: int, proof: tuple[bytes, ...], note: str) -> str:
    """Return a C2SP tlog-proof."""
    hashes = "".join(base64.b64encode(hash_).decode() + "\n" for hash_ in proof)
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note}"


def open_proof(text: str, entry: bytes, trust: Trust) -> int:
    """Return the index at which a C2SP tlog-proof shows `entry` to be logged and seen by a quorum.

    Raises:
        VerificationError: malformed, of another entry, or its checkpoint has no quorum.
    """
    proof, blank, note = text.partition("\n\n")
    lines = proof.split("\n")
    if len(lines) > 1 and lines[1].startswith("extra "):
        del lines[1]  # unauthenticated, of no use here
    fits = len(lines) > 1 and len(text) <= MAX_PROOF_CHARS and lines[0] == "c2sp.org/tlog-proof@v1"
    index = _INDEX.fullmatch(lines[1]) if fits else None
    if not index or not blank:
        raise _proof_malformed()
    head = verify_quorum(note, trust.log, trust.members, trust.quorum)
    try:
        hashes = [base64.b64decode(line, validate=True) for line in lines[2:]]
    except ValueError:
        raise _proof_malformed() from None
    verify_inclusion(leaf_hash(entry), int(index[1]), head.size, hashes, head.root)
    return int(index[1])


def _proof_malformed() -> VerificationError:
    return VerificationError(
        "tlog-proof-malformed",
        "not a C2SP tlog-proof of one entry",
        next_step="give the .tlog-proof file as the server wrote it",
    )
