"""Signed notes, checkpoints and cosignatures (C2SP signed-note, tlog-checkpoint, tlog-cosignature).

Rules.
- A note's text is looked at only after a signature by a known key was verified.
- A line by a known key (name and id) that does not verify makes the whole note invalid; lines by unknown
  keys are ignored.
- Base64 and decimal numbers have one accepted form; a checkpoint has exactly three lines.
- A hospital cosigns as `<site>.wardround` with its Ed25519 identity key (docs/spec/audit.md, rule 8).
Not done here: tree consistency (`tiles`), what a quorum is (`witness`).

    >>> key = Ed25519PrivateKey.generate()
    >>> log = log_key_of("operator.wardround", key.public_key())
    >>> note = sign_checkpoint(Checkpoint(origin="operator.wardround", size=0, root=bytes(32)), key)
    >>> open_checkpoint(note, log).size
    0
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wardround_common.audit.tiles import MAX_TREE_SIZE
from wardround_common.errors import VerificationError
from wardround_common.rounds import MAX_NOTE_BYTES
from wardround_common.signing import parse_public_key

ED25519 = 0x01
"""Signature type of the log's own line."""

COSIGNATURE_V1 = 0x04
"""Signature type of a hospital's line: timestamped Ed25519."""

MAX_SIGNATURE_LINES = 256
"""A study has at most 100 members; more lines only cost a verifier time."""

_NAME = re.compile(r"[^\s+\x00-\x20\x7f]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, kw_only=True)
class VerifierKey:
    """A C2SP verifier key: name, signature type and Ed25519 public key."""

    name: str
    kind: int  # ED25519 or COSIGNATURE_V1
    public: bytes  # 32

    @property
    def key_id(self) -> bytes:
        """The four bytes by which signature lines point to this key; a hint, not a proof."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        """Return the C2SP text form, `name+id+base64`."""
        return f"{self.name}+{self.key_id.hex()}+{_b64(bytes([self.kind]) + self.public)}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A tree head: origin, number of entries, root."""

    origin: str
    size: int
    root: bytes  # 32

    @property
    def body(self) -> str:
        """The three signed lines."""
        return f"{self.origin}\n{self.size}\n{_b64(self.root)}\n"


@dataclass(frozen=True, kw_only=True)
class _Line:
    name: str
    key_id: bytes
    signature: bytes


def log_key_of(origin: str, public: Ed25519PublicKey) -> VerifierKey:
    """Return the verifier key of a log; `str()` of it goes into studies and trust files.

    Raises:
        ValueError: `origin` is no C2SP key name.
    """
    if not _NAME.fullmatch(origin):
        raise ValueError(f"not a key name: {origin!r}")
    return VerifierKey(name=origin, kind=ED25519, public=public.public_bytes_raw())


def cosigner_key_of(site: str, identity: str) -> VerifierKey:
    """Return the key under which `site`, with its `ed25519:` identity, cosigns.

    Raises:
        VerificationError: not a key.
    """
    return VerifierKey(
        name=f"{site}.wardround", kind=COSIGNATURE_V1, public=parse_public_key(identity).public_bytes_raw()
    )


def parse_verifier_key(text: str) -> VerifierKey:
    """Return the key behind `name+id+base64`.

    Raises:
        VerificationError: not a C2SP Ed25519 verifier key, or its id is wrong.
    """
    name, _, rest = text.partition("+")
    key_id, _, body = rest.partition("+")
    raw = _decode(body, "verifier key")
    if not _NAME.fullmatch(name) or len(raw) != 33 or raw[0] not in (ED25519, COSIGNATURE_V1):
        raise _malformed("not an Ed25519 verifier key")
    key = VerifierKey(name=name, kind=raw[0], public=raw[1:])
    if key.key_id.hex() != key_id:
        raise _malformed("the verifier key's id does not fit its key: it was altered on its way")
    return key


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """Return the note that the log signs; the same input always gives the same text."""
    log = log_key_of(checkpoint.origin, key.public_key())
    signature = _b64(log.key_id + key.sign(checkpoint.body.encode()))
    return f"{checkpoint.body}\n— {log.name} {signature}\n"


def open_checkpoint(note: str, log: VerifierKey) -> Checkpoint:
    """Return the checkpoint that `log` signed.

    Raises:
        VerificationError: malformed, not signed by `log`, or another log's.
    """
    body = open_note(note, log)
    lines = body.split("\n")
    if len(lines) != 4 or not _SIZE.fullmatch(lines[1]):
        raise _malformed("a checkpoint has three lines: origin, size, root")
    root = _decode(lines[2], "root")
    if lines[0] != log.name or len(root) != 32 or int(lines[1]) > MAX_TREE_SIZE:
        raise _malformed("the checkpoint names another log, or a size or root that cannot be")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=root)


def open_note(note: str, key: VerifierKey) -> str:
    """Return the note's text after `key` was found to have signed it.

    Raises:
        VerificationError: malformed, no line by `key`, or one that does not verify.
    """
    body, lines = _split_note(note)
    matching = _lines_of(lines, key)
    if not matching:
        raise VerificationError(
            "note-not-signed",
            f"the note is not signed by {key.name} ({key.key_id.hex()})",
            next_step="compare the log key in your trust file with the operator's, by telephone",
        )
    for line in matching:
        _verify_line(line, key, body)
    return body


def sign_cosignature(checkpoint: Checkpoint, site: str, key: Ed25519PrivateKey, time: int) -> str:
    """Return `site`'s cosignature line (without line end) as of `time`, seconds since 1970."""
    public = key.public_key().public_bytes_raw()
    cosigner = VerifierKey(name=f"{site}.wardround", kind=COSIGNATURE_V1, public=public)
    signature = key.sign(_cosigned_message(time, checkpoint.body))
    return f"— {cosigner.name} {_b64(cosigner.key_id + struct.pack('>Q', time) + signature)}"


def cosigned_times(note: str, members: Mapping[str, str]) -> dict[str, int]:
    """Return who of `members` (name -> `ed25519:` key) cosigned, and when (seconds since 1970).

    Raises:
        VerificationError: malformed, or a member's line does not verify.
    """
    body, lines = _split_note(note)
    times: dict[str, int] = {}
    for site, identity in members.items():
        key = cosigner_key_of(site, identity)
        for line in _lines_of(lines, key):
            times[site] = max(times.get(site, 0), _verify_line(line, key, body))
    return times


def add_lines(note: str, lines: Iterable[str]) -> str:
    """Return `note` with signature lines added; a later line by the same key replaces the earlier one.

    Raises:
        VerificationError: a line or the note is malformed.
    """
    body, present = _split_note(note)
    kept = {(line.name, line.key_id): line for line in (*present, *(_parse_line(line) for line in lines))}
    return body + "\n" + "".join(f"— {line.name} {_b64(line.key_id + line.signature)}\n" for line in kept.values())


def line_name(line: str) -> str:
    """Return the key name of one signature line.

    Raises:
        VerificationError: not a signature line.
    """
    return _parse_line(line).name


def _split_note(note: str) -> tuple[str, tuple[_Line, ...]]:
    if len(note) > MAX_NOTE_BYTES or re.search(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", note):
        raise _malformed("too long, or holds control characters")
    text, blank, signatures = note.rpartition("\n\n")
    if not blank or not text or not signatures.endswith("\n"):
        raise _malformed("text, blank line and signature lines are not all there")
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURE_LINES:
        raise _malformed(f"more than {MAX_SIGNATURE_LINES} signatures")
    return text + "\n", tuple(_parse_line(line) for line in lines)


def _parse_line(line: str) -> _Line:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != "—" or not _NAME.fullmatch(name):
        raise _malformed("a signature line is not '— name base64'")
    raw = _decode(encoded, "signature")
    if len(raw) < 5:
        raise _malformed("a signature is too short")
    return _Line(name=name, key_id=raw[:4], signature=raw[4:])


def _lines_of(lines: Iterable[_Line], key: VerifierKey) -> list[_Line]:
    return [line for line in lines if line.name == key.name and line.key_id == key.key_id]


def _verify_line(line: _Line, key: VerifierKey, body: str) -> int:
    """Return the line's time (0 for a log's own line)."""
    time, signature, message = 0, line.signature, body.encode()
    if key.kind == COSIGNATURE_V1:
        time = int.from_bytes(signature[:8], "big")
        signature, message = signature[8:], _cosigned_message(time, body)
    try:
        if time >= 1 << 63:
            raise InvalidSignature
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except InvalidSignature:
        raise VerificationError(
            "note-signature-invalid",
            f"the signature by {key.name} does not match the note",
            next_step="the checkpoint was altered: get it again; if that does not help, ask the operator",
        ) from None
    return time


def _cosigned_message(time: int, body: str) -> bytes:
    return f"cosignature/v1\ntime {time}\n{body}".encode()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise _malformed(f"the {what} is not base64") from None
    if _b64(data) != text:
        raise _malformed(f"the {what} is not canonical base64")
    return data


def _malformed(why: str) -> VerificationError:
    return VerificationError(
        "note-malformed",
        f"malformed signed note: {why}",
        next_step="get the checkpoint or key again; if it stays malformed, ask the operator",
    )
