"""Sealing and opening entries: keys, commitments, padding.

Rules (docs/spec/audit.md, rules 4 to 6).
- Every entry has its own key from a ratchet that only runs forwards, and a 256-bit commitment to that key.
- Sizes are padded to buckets; there is exactly one accepted form of everything.
Not done here: framing (`framing`), seeds and age files (`segment`), files, what an event says (`events`).

    >>> from wardround_common.audit.framing import parse_sealed
    >>> sealer = Sealer(segment=bytes(8), seed=bytes(32))
    >>> entry, key = sealer.seal(b'{"kind":"server.stop","v":1}', time=0)
    >>> open_entry(parse_sealed(entry), key)
    b'{"kind":"server.stop","v":1}'
"""

import hmac
import struct
import zlib
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wardround_common.audit.framing import BUCKETS, SealedEntry, frame_header
from wardround_common.errors import ProtocolError, VerificationError

KEY_BYTES = 32

MAX_EVENT_BYTES = 1 << 20
"""No document of ours is larger (`documents.MAX_DOCUMENT_BYTES`); a zlib stream must not inflate further."""

COMPRESS_ABOVE = 4_096
"""Bytes. Only studies are larger; 16-bit entry lengths would not hold the largest of them."""

_FRAME = struct.Struct(">BI")  # encoding, length
_RAW, _ZLIB = 0, 1


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
        header = frame_header(self.segment, self.count, _commitment(key), time=time)
        self.count += 1
        return header + ChaCha20Poly1305(_mac(key, b"aead")).encrypt(bytes(12), plaintext, header), key


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


def message_keys(seed: bytes) -> Iterator[bytes]:
    """Yield a segment's message keys in order."""
    chain = first_chain_key(seed)
    while True:
        key, chain = _step(chain)
        yield key


def first_chain_key(seed: bytes) -> bytes:
    """Return the ratchet's first chain key."""
    return _mac(seed, b"wardround/audit/1 chain")


def unreadable(why: str) -> VerificationError:
    """Return the error for an entry that its key does not open."""
    return VerificationError(
        "log-entry-unreadable",
        f"an audit entry cannot be read: {why}",
        next_step="the server wrote or disclosed a wrong entry: keep the log and ask the operator; do not cosign",
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


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
