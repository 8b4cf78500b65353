"""Framing of log entries, without any key (docs/spec/audit.md, "Entries").

Rules.
- An entry is version, type, segment, time and the rest. Records about segments are public, events are sealed.
- A sealed entry belongs to the last segment.open before it; its counter runs 0, 1, 2, ... A rewrap or shred names a
  segment that was opened before it.
- What a newer version wrote is an `UnknownEntry`: shown and counted, never dropped. The tree holds it like any other.
Not done here: keys, encryption (`seal`), the age files (`segment`).

    >>> parse_entry(bytes([9, 0]) + bytes(16)).kind
    'version-9'
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from wardround_common.audit.tiles import MAX_ENTRY_BYTES
from wardround_common.documents import Digest, Document
from wardround_common.errors import ProtocolError, VerificationError

SEGMENT_BYTES = 8

BUCKETS = (*(256 << n for n in range(8)), 65_024)
"""Plaintext sizes. The last one just fits a 16-bit entry length."""

TAG_BYTES = 16
"""Of ChaCha20-Poly1305."""

ShredReason = Literal["retention-ended", "erasure-request", "key-compromised"]
"""Why a segment was made unreadable."""

_VERSION = 1
_OPEN, _SEALED, _REWRAP, _SHRED = range(4)
_HEAD = struct.Struct(">BB8sQ")  # version, type, segment, time
_SEALED_HEAD = struct.Struct(">BB8sQI32s")  # ... counter, commitment
_SEALED_SIZES = frozenset(_SEALED_HEAD.size + bucket + TAG_BYTES for bucket in BUCKETS)


class SegmentOpen(Document):
    """The public commitment of a segment."""

    format: Literal["wardround/segment/1"] = "wardround/segment/1"
    seed: Digest  # of "wardround/audit/1 seed" and the seed
    wrap: Digest  # of the age file
    recipients: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=32)]  # of age recipients, sorted


class SegmentRewrap(Document):
    """A reviewer wrapped a segment's seed again, for other recipients."""

    format: Literal["wardround/rewrap/1"] = "wardround/rewrap/1"
    wrap: Digest  # of the new age file
    recipients: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=32)]  # as the reviewer stated them, sorted


class SegmentShred(Document):
    """A segment's age files were deleted for good."""

    format: Literal["wardround/shred/1"] = "wardround/shred/1"
    reason: ShredReason


SegmentRecord = SegmentOpen | SegmentRewrap | SegmentShred

_RECORDS: dict[int, type[SegmentOpen] | type[SegmentRewrap] | type[SegmentShred]] = {
    _OPEN: SegmentOpen,
    _REWRAP: SegmentRewrap,
    _SHRED: SegmentShred,
}
_KINDS = {SegmentOpen: "segment.open", SegmentRewrap: "segment.rewrap", SegmentShred: "segment.shred"}


@dataclass(frozen=True, kw_only=True)
class RecordEntry:
    """A parsed public entry: what happened to a segment."""

    segment: str  # 16 hex digits
    time: int  # seconds since 1970, the server's claim
    record: SegmentRecord

    @property
    def kind(self) -> str:
        """`segment.open`, `segment.rewrap` or `segment.shred`."""
        return _KINDS[type(self.record)]


@dataclass(frozen=True, kw_only=True)
class SealedEntry:
    """A parsed sealed entry."""

    segment: str  # 16 hex digits
    time: int  # seconds since 1970, the server's claim
    counter: int  # position in the segment
    commitment: bytes  # 32
    header: bytes  # 54, associated data
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class UnknownEntry:
    """An entry of a version or type that this reader does not know."""

    segment: str  # 16 hex digits, if the newer version keeps the place
    time: int
    kind: str  # `version-N` or `type-N`


Entry = RecordEntry | SealedEntry | UnknownEntry


def frame_record(segment: bytes, record: SegmentRecord, *, time: int) -> bytes:
    """Return the public entry that holds `record`."""
    kind = next(kind for kind, cls in _RECORDS.items() if isinstance(record, cls))
    return _HEAD.pack(_VERSION, kind, segment, time) + record.to_bytes()


def frame_header(segment: bytes, counter: int, commitment: bytes, *, time: int) -> bytes:
    """Return the 54 bytes before a sealed entry's ciphertext."""
    return _SEALED_HEAD.pack(_VERSION, _SEALED, segment, time, counter, commitment)


def parse_entry(entry: bytes) -> Entry:
    """Take an entry apart.

    Raises:
        VerificationError: not an entry of this format.
    """
    if len(entry) < _HEAD.size or len(entry) > MAX_ENTRY_BYTES or entry[0] == 0:
        raise malformed("wrong version or length")
    version, kind, segment, time = _HEAD.unpack_from(entry)
    if version == _VERSION and kind == _SEALED:
        return parse_sealed(entry)
    if version != _VERSION or kind not in _RECORDS:
        name = f"version-{version}" if version != _VERSION else f"type-{kind}"
        return UnknownEntry(segment=segment.hex(), time=time, kind=name)
    try:
        record = _RECORDS[kind].from_bytes(entry[_HEAD.size :])
    except ProtocolError as error:
        raise malformed(f"{_KINDS[_RECORDS[kind]]}: {error}") from None
    return RecordEntry(segment=segment.hex(), time=time, record=record)


def is_sealed(entry: bytes) -> bool:
    """Return whether an entry claims to be sealed, by its first two bytes."""
    return entry[:2] == bytes([_VERSION, _SEALED])


def parse_sealed(entry: bytes) -> SealedEntry:
    """Take a sealed entry apart.

    Raises:
        VerificationError: not a sealed entry of this format.
    """
    if len(entry) not in _SEALED_SIZES or entry[0] != _VERSION or entry[1] != _SEALED:
        raise malformed("not a sealed entry, or not of a padded size")
    size = _SEALED_HEAD.size
    _, _, segment, time, counter, commitment = _SEALED_HEAD.unpack_from(entry)
    return SealedEntry(
        segment=segment.hex(),
        time=time,
        counter=counter,
        commitment=commitment,
        header=entry[:size],
        ciphertext=entry[size:],
    )


@dataclass(kw_only=True)
class Segment:
    """What a log's public entries say about one segment."""

    opened: RecordEntry
    wraps: tuple[str, ...]  # digests of its age files, oldest first
    recipients: tuple[str, ...]  # of the newest age file
    shredded: RecordEntry | None = None


class SegmentChain:
    """Checks rules 1 and 1a over a log's entries, in order."""

    def __init__(self) -> None:
        self.segments: dict[str, Segment] = {}  # by name, in order
        self.unknown = 0  # entries of newer versions
        self._head = b""  # the first bytes that the next sealed entry of the segment must have
        self._current = ""
        self._next = 0

    def extend(self, entries: Sequence[bytes]) -> None:
        """Take the log's next entries.

        Raises:
            VerificationError: one is malformed or does not belong here.
        """
        # A log consists almost wholly of sealed entries; this loop decides how long a verifier waits.
        sizes, from_bytes = _SEALED_SIZES, int.from_bytes
        head, expected = self._head, self._next
        for entry in entries:
            if len(entry) in sizes and entry[:10] == head and from_bytes(entry[18:22], "big") == expected:
                expected += 1
                continue
            self._next = expected
            self.add(entry)
            head, expected = self._head, self._next
        self._next = expected

    def add(self, entry: bytes) -> None:
        """Take the log's next entry; errors as `extend`."""
        parsed = parse_entry(entry)
        if isinstance(parsed, SealedEntry) and entry[:10] == self._head and parsed.counter == self._next:
            self._next += 1
            return
        if isinstance(parsed, SealedEntry):
            raise malformed(f"entry {parsed.counter} of segment {parsed.segment} is out of order")
        if isinstance(parsed, RecordEntry):
            self._record(parsed)
        elif self._current:
            self.unknown += 1
        else:
            raise malformed("the log does not begin with a segment.open entry")

    def _record(self, entry: RecordEntry) -> None:
        name, record = entry.segment, entry.record
        if isinstance(record, SegmentOpen):
            if name in self.segments:
                raise malformed(f"segment {name} is opened twice")
            self.segments[name] = Segment(opened=entry, wraps=(record.wrap,), recipients=record.recipients)
            self._current, self._next = name, 0
            self._head = bytes([_VERSION, _SEALED]) + bytes.fromhex(name)
            return
        segment = self.segments.get(name)
        if segment is None or segment.shredded:
            raise malformed(f"{entry.kind} of segment {name}, which is not open or was shredded")
        if isinstance(record, SegmentRewrap):
            segment.wraps, segment.recipients = (*segment.wraps, record.wrap), record.recipients
            return
        segment.shredded = entry
        if name == self._current:
            self._head = b""  # nothing more may be sealed under it


def malformed(why: str) -> VerificationError:
    """Return the error for an entry that is not one."""
    return VerificationError(
        "log-entry-malformed",
        f"malformed audit entry: {why}",
        next_step="the log was altered or written by another version: compare versions, then ask the operator",
    )
