"""One entry, handed to somebody who has neither the log nor your key.

Rules.
- A receipt is a C2SP tlog-proof against a checkpoint with a quorum's cosignatures, and the entry's bytes. With the
  entry's message key it also discloses what this one entry says, and nothing of any other.
- Whoever gets it needs the trust file and nothing else; `open_receipt` returns what was proven or raises.
Not done here: files and names (`cli_evidence`).

    >>> open_receipt(make_receipt(folder, 42, trust, identity), trust).index  # doctest: +SKIP
    42
"""

from dataclasses import dataclass, field
from typing import Any

from wardround_common.audit.events import Event, Unknown, parse_event
from wardround_common.audit.framing import is_sealed, parse_sealed
from wardround_common.audit.proof import open_proof
from wardround_common.audit.reader import LogFolder, keyed_entries
from wardround_common.audit.seal import open_entry
from wardround_common.audit.trust import Trust
from wardround_common.audit.witness import verify_quorum
from wardround_common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is handed over."""

    proof: str  # C2SP tlog-proof
    entry: bytes
    key: bytes | None = field(default=None, repr=False)  # 32; None: the content stays sealed


@dataclass(frozen=True, kw_only=True)
class Proven:
    """What a receipt proves: an entry at its place, and with the key what it says."""

    index: int
    event: Event | Unknown | None


def make_receipt(folder: LogFolder, index: int, trust: Trust, identity: Any = None) -> Receipt:
    """Return entry `index`'s receipt; with an age identity it discloses the content.

    Raises:
        VerificationError: the checkpoint has no quorum, or a file is missing or malformed.
        ConfigError: no such entry under the cosigned checkpoint, or its segment cannot be opened.
    """
    note = folder.cosigned() or folder.checkpoint()
    head = verify_quorum(note, trust.log, trust.members, trust.quorum)
    if not 0 <= index < head.size:
        raise ConfigError(
            "receipt-no-such-entry",
            f"there is no entry {index} among the {head.size} that hospitals have cosigned",
            next_step="`wardround audit search` shows the indexes; a new entry waits for the next cosigning",
        )
    entry = folder.entry(index, head.size)
    key = _message_key(folder, index, identity) if identity is not None and is_sealed(entry) else None
    return Receipt(proof=folder.proof_text(index, note, trust.log_key()), entry=entry, key=key)


def open_receipt(receipt: Receipt, trust: Trust) -> Proven:
    """Return what a receipt proves.

    Raises:
        VerificationError: it proves nothing.
        ProtocolError: the entry holds no valid event.
    """
    index = open_proof(receipt.proof, receipt.entry, trust)
    if receipt.key is None:
        return Proven(index=index, event=None)
    return Proven(index=index, event=parse_event(open_entry(parse_sealed(receipt.entry), receipt.key)))


def _message_key(folder: LogFolder, index: int, identity: Any) -> bytes:
    keyed = next(one for one in keyed_entries(folder, identity) if one.index == index)
    if isinstance(keyed.key, str):
        raise ConfigError(
            "receipt-sealed",
            f"entry {index} cannot be disclosed: {keyed.key}",
            next_step="use the identity of a reviewer of that segment, or leave --disclose out",
        )
    return keyed.key
