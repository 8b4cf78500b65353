"""Entries of the audit log: framing, segment keys, sealing and opening.

Rules (docs/spec/audit.md, rules 1 to 6).
- A segment has one random seed, wrapped with age to every reviewer, and a public segment.open entry that
  commits to the seed, to the age file and to the recipients.
- Every entry has its own key from a ratchet that only runs forwards, and a 256-bit commitment to that key.
- Sizes are padded to buckets; there is exactly one accepted form of everything.
Not done here: files, order in time, what an event says (`events`).

    >>> sealer = Sealer(segment=bytes(8), seed=bytes(32))
    >>> entry, key = sealer.seal(b'{"kind":"server.stop","v":1}', time=0)
    >>> open_entry(parse_sealed(entry), key)
    b'{"kind":"server.stop","v":1}'
"""

import hashlib
import hmac
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pyrage
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import Field

from wardround_common.audit.tiles import MAX_ENTRY_BYTES
from wardround_common.documents import Digest, Document, sha256_digest
from wardround_common.errors import ConfigError, ProtocolError, VerificationError

SEED_BYTES = 32
KEY_BYTES = 32
SEGMENT_BYTES = 8

MAX_EVENT_BYTES = 1 << 20
"""No document of ours is larger (`documents.MAX_DOCUMENT_BYTES`); a zlib stream must not inflate further."""

MAX_WRAP_BYTES = 65_536
"""An age file for 32 reviewers has about 4 kB; more is not ours."""

COMPRESS_ABOVE = 4_096
"""Bytes. Only studies are larger; 16-bit entry lengths would not hold the largest of them."""

BUCKETS = (*(256 << n for n in range(8)), 65_024)
"""Plaintext sizes. The last one just fits a 16-bit entry length."""

_OPEN, _SEALED = 0x00, 0x01
_HEAD = struct.Struct(">BB8sQ")  # version, type, segment, time
_SEALED_HEAD = struct.Struct(">BB8sQI32s")  # ... counter, commitment
_FRAME = struct.Struct(">BI")  # encoding, length
_RAW, _ZLIB = 0, 1


class SegmentOpen(Document):
    """The public commitment of a segment."""

    format: Literal["wardround/segment/1"] = "wardround/segment/1"
    seed: Digest  # of "wardround/audit/1 seed" and the seed
    wrap: Digest  # of the age file
    recipients: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=32)]  # of age recipients, sorted


@dataclass(frozen=True, kw_only=True)
class OpenEntry:
    """A parsed segment.open entry."""

    segment: str  # 16 hex digits
    time: int  # seconds since 1970, the server's claim
    opened: SegmentOpen


@dataclass(frozen=True, kw_only=True)
class SealedEntry:
    """A parsed sealed entry."""

    segment: str  # 16 hex digits
    time: int  # seconds since 1970, the server's claim
    counter: int  # position in the segment
    commitment: bytes  # 32
    header: bytes  # 54, associated data
    ciphertext: bytes = field(repr=False)


class Sealer:
    """Seals a segment's entries; forgets each key as it goes."""

    def __init__(self, *, segment: bytes, seed: bytes) -> None:
        self.segment = segment
        self.count = 0  # entries sealed
        self._chain = first_chain_key(seed)

    def seal(self, event: bytes, *, time: int) -> tuple[bytes, bytes]:
        """Return (entry, message key) for one event's canonical JSON.

        Raises:
            ProtocolError: the event is too large for one entry.
        """
        plaintext = _pad(event)
        key, self._chain = _step(self._chain)
        header = _SEALED_HEAD.pack(1, _SEALED, self.segment, time, self.count, _commitment(key))
        self.count += 1
        return header + ChaCha20Poly1305(_mac(key, b"aead")).encrypt(bytes(12), plaintext, header), key


def open_segment(segment: bytes, seed: bytes, recipients: Sequence[str], *, time: int) -> tuple[bytes, bytes]:
    """Return (age file, segment.open entry) of a new segment.

    Raises:
        ConfigError: a recipient is not an age X25519 recipient.
    """
    wrap = pyrage.encrypt(seed.hex().encode(), [parse_recipient(text) for text in recipients])
    opened = SegmentOpen(
        seed=_seed_commitment(seed),
        wrap=sha256_digest(wrap),
        recipients=tuple(sorted(sha256_digest(text.encode()) for text in recipients)),
    )
    return wrap, _HEAD.pack(1, _OPEN, segment, time) + opened.to_bytes()


def parse_recipient(text: str) -> Any:
    """Return pyrage's recipient.

    Raises:
        ConfigError: not an age X25519 recipient.
    """
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise ConfigError(
            "reviewer-recipient-invalid",
            f"{text[:20]}… is not an age recipient",
            next_step="copy the whole line that `wardround audit keygen` printed, beginning with age1",
        ) from None


def parse_entry(entry: bytes) -> OpenEntry | SealedEntry:
    """Take an entry apart, without any key.

    Raises:
        VerificationError: not an entry of this format.
    """
    if len(entry) < _HEAD.size or len(entry) > MAX_ENTRY_BYTES or entry[0] != 1:
        raise _malformed("wrong version or length")
    if entry[1] == _SEALED:
        return parse_sealed(entry)
    if entry[1] != _OPEN:
        raise _malformed("unknown type")
    _, _, segment, time = _HEAD.unpack_from(entry)
    try:
        opened = SegmentOpen.from_bytes(entry[_HEAD.size :])
    except ProtocolError as error:
        raise _malformed(f"segment.open: {error}") from None
    return OpenEntry(segment=segment.hex(), time=time, opened=opened)


def parse_sealed(entry: bytes) -> SealedEntry:
    """Take a sealed entry apart.

    Raises:
        VerificationError: not a sealed entry of this format.
    """
    size = _SEALED_HEAD.size
    if len(entry) - size - 16 not in BUCKETS or entry[:2] != bytes([1, _SEALED]):
        raise _malformed("not a sealed entry, or not of a padded size")
    _, _, segment, time, counter, commitment = _SEALED_HEAD.unpack_from(entry)
    return SealedEntry(
        segment=segment.hex(),
        time=time,
        counter=counter,
        commitment=commitment,
        header=entry[:size],
        ciphertext=entry[size:],
    )


def open_entry(entry: SealedEntry, key: bytes) -> bytes:
    """Return the event's JSON that `key` opens; there is only one such text for an entry.

    Raises:
        VerificationError: wrong key, or the plaintext is not well-formed.
    """
    # The length matters: HMAC pads short keys with zeros, so two lengths could share a commitment.
    if len(key) != KEY_BYTES or not hmac.compare_digest(_commitment(key), entry.commitment):
        raise unreadable("its key does not match the commitment")
    try:
        plaintext = ChaCha20Poly1305(_mac(key, b"aead")).decrypt(bytes(12), entry.ciphertext, entry.header)
    except InvalidTag:
        raise unreadable("its ciphertext does not match its key") from None
    return _unpad(plaintext)


def unwrap_seed(wrap: bytes, opened: SegmentOpen, identity: Any) -> bytes:
    """Return a segment's seed with a reviewer's age identity.

    Raises:
        VerificationError: the age file is not the committed one, not for this identity, or holds another seed.
    """
    if len(wrap) > MAX_WRAP_BYTES or sha256_digest(wrap) != opened.wrap:
        raise key_file_altered("it is not the file that the segment.open entry names")
    try:
        seed = bytes.fromhex(pyrage.decrypt(wrap, [identity]).decode())
    except pyrage.DecryptError:
        raise VerificationError(
            "audit-identity-wrong",
            "the age identity does not open this segment's key file",
            next_step="use the identity whose recipient the operator was given for this study",
        ) from None
    except ValueError:
        raise key_file_altered("it holds no seed") from None
    if len(seed) != SEED_BYTES or _seed_commitment(seed) != opened.seed:
        raise key_file_altered("its seed does not match the segment.open entry")
    return seed


def message_keys(seed: bytes) -> Iterator[bytes]:
    """Yield a segment's message keys in order."""
    chain = first_chain_key(seed)
    while True:
        key, chain = _step(chain)
        yield key


def first_chain_key(seed: bytes) -> bytes:
    """Return the ratchet's first chain key."""
    return _mac(seed, b"wardround/audit/1 chain")


class SegmentChain:
    """Checks rule 1 over a log's entries, in order."""

    def __init__(self) -> None:
        self.opened: dict[str, OpenEntry] = {}  # by segment, in order
        self._current = ""
        self._next = 0

    def add(self, entry: OpenEntry | SealedEntry) -> None:
        """Take the log's next entry.

        Raises:
            VerificationError: it does not belong here.
        """
        if isinstance(entry, OpenEntry):
            if entry.segment in self.opened:
                raise _malformed(f"segment {entry.segment} is opened twice")
            self.opened[entry.segment] = entry
            self._current, self._next = entry.segment, 0
            return
        if entry.segment != self._current or entry.counter != self._next:
            raise _malformed(f"entry {entry.counter} of segment {entry.segment} is out of order")
        self._next += 1


def unreadable(why: str) -> VerificationError:
    """Return the error for an entry that its key does not open."""
    return VerificationError(
        "log-entry-unreadable",
        f"an audit entry cannot be read: {why}",
        next_step="the server wrote or disclosed a wrong entry: keep the log and ask the operator; do not cosign",
    )


def key_file_altered(why: str) -> VerificationError:
    """Return the error for an age file that is not what was committed to."""
    return VerificationError(
        "log-key-file-altered",
        f"a key file of the audit log is wrong: {why}",
        next_step="copy the audit folder again; if it stays wrong, ask the operator for the original file",
    )


def _pad(event: bytes) -> bytes:
    encoding, body = (_ZLIB, zlib.compress(event, 9)) if len(event) > COMPRESS_ABOVE else (_RAW, event)
    size = next((bucket for bucket in BUCKETS if bucket >= _FRAME.size + len(body)), None)
    if size is None or len(event) > MAX_EVENT_BYTES:
        raise ProtocolError(
            "audit-event-too-large",
            f"an audit event of {len(event)} bytes does not fit one log entry",
            next_step="shorten the study (labels, member names); the audit log must hold it whole",
        )
    return (_FRAME.pack(encoding, len(body)) + body).ljust(size, b"\0")


def _unpad(plaintext: bytes) -> bytes:
    encoding, length = _FRAME.unpack_from(plaintext)
    end = _FRAME.size + length
    body = plaintext[_FRAME.size : end]
    smallest = next((bucket for bucket in BUCKETS if bucket >= end), 0)
    if encoding not in (_RAW, _ZLIB) or smallest != len(plaintext) or plaintext[end:].strip(b"\0"):
        raise unreadable("its padding is wrong")
    return _inflate(body) if encoding == _ZLIB else body


def _inflate(body: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        event = stream.decompress(body, MAX_EVENT_BYTES + 1)
    except zlib.error:
        raise unreadable("it is not a zlib stream") from None
    if len(event) > MAX_EVENT_BYTES or not stream.eof or stream.unused_data:
        raise unreadable("its zlib stream is too long or incomplete")
    return event


def _step(chain: bytes) -> tuple[bytes, bytes]:
    return _mac(chain, b"message"), _mac(chain, b"next")


def _commitment(key: bytes) -> bytes:
    return _mac(key, b"commit")


def _seed_commitment(seed: bytes) -> str:
    return sha256_digest(b"wardround/audit/1 seed" + seed)


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def _malformed(why: str) -> VerificationError:
    return VerificationError(
        "log-entry-malformed",
        f"malformed audit entry: {why}",
        next_step="the log was altered or written by another version: compare versions, then ask the operator",
    )
