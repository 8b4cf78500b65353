"""Binary messages with per-peer data (docs/spec/secagg.md, "Frames").

Rules.
- Every frame has one encoding: lists ascend strictly, nothing may follow the end, unknown flags are refused.
- A reader allocates nothing that the bytes in hand do not hold: counts are checked against the study first.
- Decoding checks form only; signatures and secrets are checked by `member` and `coordinator`.

    >>> KeyList.decode(KeyList(round=1, entries=()).encode(), members=3)
    KeyList(round=1, entries=())
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from wardround_common.envelope.hpke import OVERHEAD, PUBLIC
from wardround_common.secagg.derive import KEY, TAG
from wardround_common.secagg.documents import SIGNATURE
from wardround_common.secagg.errors import frame_invalid

WRAPPED = KEY + OVERHEAD
"""An HPKE-wrapped secret."""

BOX = 2 * KEY + TAG
"""A parcel's box: two shares."""

_HEAD = struct.Struct(">7sBI")
_VERSION = 1
_T = TypeVar("_T")


class _Reader:
    """Reads one frame; every step raises ProtocolError instead of running over the end."""

    def __init__(self, data: bytes, magic: bytes, members: int) -> None:
        self._data = data
        self._at = 0
        self.members = members
        found, version, self.round = _HEAD.unpack(self.take(_HEAD.size))
        if found != magic or version != _VERSION:
            raise frame_invalid("another kind or version")
        if self.round < 1:
            raise frame_invalid("rounds count from 1")

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise frame_invalid("it ends too early")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def index(self) -> int:
        value = self.number(2)
        if value >= self.members:
            raise frame_invalid("a member that the study does not have")
        return value

    def flags(self, known: int) -> int:
        value = self.number(1)
        if value & ~known:
            raise frame_invalid("unknown flags")
        return value

    def ascending(self, item: Callable[[], tuple[int, _T]]) -> tuple[tuple[int, _T], ...]:
        """Read a count and so many items whose indices ascend."""
        count = self.count()
        items: list[tuple[int, _T]] = []
        for _ in range(count):
            found = item()
            if items and found[0] <= items[-1][0]:
                raise frame_invalid("a list that does not ascend")
            items.append(found)
        return tuple(items)

    def count(self) -> int:
        value = self.number(2)
        if value > self.members:
            raise frame_invalid("more entries than members")
        return value

    def end(self) -> None:
        if self._at != len(self._data):
            raise frame_invalid("bytes behind its end")


def _head(magic: bytes, round_: int) -> bytes:
    return _HEAD.pack(magic, _VERSION, round_)


def _two(value: int) -> bytes:
    return value.to_bytes(2, "big")


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """One member's keys: variable fields and signatures of `MaskKeys` and `CarrierKey`."""

    index: int
    mask_key: bytes = field(repr=False)
    carrier: bytes  # SHA-256 of the carrier key
    signature: bytes = field(repr=False)
    carrier_key: bytes = field(default=b"", repr=False)  # empty where the receiver has it
    carrier_signature: bytes = field(default=b"", repr=False)

    def without_carrier(self) -> "KeyEntry":
        """Return the entry for a receiver that knows the carrier."""
        return KeyEntry(index=self.index, mask_key=self.mask_key, carrier=self.carrier, signature=self.signature)

    def encode(self) -> bytes:
        """Return the entry's bytes in a list."""
        flags = bytes([1 if self.carrier_key else 0])
        fixed = _two(self.index) + flags + self.mask_key + self.carrier + self.signature
        return fixed + self.carrier_key + self.carrier_signature


@dataclass(frozen=True, kw_only=True)
class KeyList:
    """Mask keys of members for one round; with one entry, a member's offer."""

    round: int
    entries: tuple[KeyEntry, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        return _head(b"wr-keys", self.round) + _two(len(self.entries)) + b"".join(e.encode() for e in self.entries)

    @classmethod
    def decode(cls, data: bytes, *, members: int) -> "KeyList":
        """Read a frame.

        Raises:
            ProtocolError: not this frame.
        """
        reader = _Reader(data, b"wr-keys", members)
        entries = reader.ascending(lambda: _key_entry(reader))
        reader.end()
        return cls(round=reader.round, entries=tuple(entry for _, entry in entries))


def _key_entry(reader: _Reader) -> tuple[int, KeyEntry]:
    index, flags = reader.index(), reader.flags(1)
    entry = KeyEntry(
        index=index,
        mask_key=reader.take(PUBLIC),
        carrier=reader.take(KEY),
        signature=reader.take(SIGNATURE),
        carrier_key=reader.take(PUBLIC) if flags else b"",
        carrier_signature=reader.take(SIGNATURE) if flags else b"",
    )
    return index, entry


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What one member sends another before a round; opaque to the server."""

    seed: bytes = field(default=b"", repr=False)  # the pair's wrapped seed, from its chooser
    introduction: bytes = field(default=b"", repr=False)  # wrapped chain key
    introduction_signature: bytes = field(default=b"", repr=False)
    box: bytes = field(repr=False)  # the receiver's two shares

    def encode(self) -> bytes:
        """Return the parcel's bytes in a frame."""
        flags = bytes([(1 if self.seed else 0) | (2 if self.introduction else 0)])
        return flags + self.seed + self.introduction + self.introduction_signature + self.box


def _parcel(reader: _Reader) -> Parcel:
    flags = reader.flags(3)
    return Parcel(
        seed=reader.take(WRAPPED) if flags & 1 else b"",
        introduction=reader.take(WRAPPED) if flags & 2 else b"",
        introduction_signature=reader.take(SIGNATURE) if flags & 2 else b"",
        box=reader.take(BOX),
    )


@dataclass(frozen=True, kw_only=True)
class ParcelSet:
    """All parcels of one sender for one round, signed."""

    round: int
    sender: int
    parcels: tuple[tuple[int, Parcel], ...]  # by receiver
    keys: bytes  # digest of the key set that they were made for
    signature: bytes = field(default=bytes(SIGNATURE), repr=False)

    @property
    def body(self) -> bytes:
        """What the signature covers."""
        items = b"".join(_two(index) + parcel.encode() for index, parcel in self.parcels)
        return _head(b"wr-parc", self.round) + _two(self.sender) + _two(len(self.parcels)) + items + self.keys

    def encode(self) -> bytes:
        """Return the frame."""
        return self.body + self.signature

    @classmethod
    def decode(cls, data: bytes, *, members: int) -> "ParcelSet":
        """Read a frame.

        Raises:
            ProtocolError: not this frame.
        """
        reader = _Reader(data, b"wr-parc", members)
        sender = reader.index()
        parcels = reader.ascending(lambda: (reader.index(), _parcel(reader)))
        keys, signature = reader.take(KEY), reader.take(SIGNATURE)
        reader.end()
        return cls(round=reader.round, sender=sender, parcels=parcels, keys=keys, signature=signature)


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What a member needs to mask: the roster and the parcels for it."""

    round: int
    roster: tuple[int, ...]
    parcels: tuple[tuple[int, Parcel], ...]  # by sender

    def encode(self) -> bytes:
        """Return the frame."""
        items = b"".join(_two(index) + parcel.encode() for index, parcel in self.parcels)
        roster = _two(len(self.roster)) + b"".join(map(_two, self.roster))
        return _head(b"wr-kit!", self.round) + roster + _two(len(self.parcels)) + items

    @classmethod
    def decode(cls, data: bytes, *, members: int) -> "Kit":
        """Read a frame.

        Raises:
            ProtocolError: not this frame.
        """
        reader = _Reader(data, b"wr-kit!", members)
        roster = reader.ascending(lambda: (reader.index(), None))
        parcels = reader.ascending(lambda: (reader.index(), _parcel(reader)))
        reader.end()
        return cls(round=reader.round, roster=tuple(index for index, _ in roster), parcels=parcels)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A survivor's header, as its variable fields and signature."""

    index: int
    vector: bytes  # SHA-256 of the masked vector
    commitment: bytes
    signature: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the receipt's bytes in a frame."""
        return _two(self.index) + self.vector + self.commitment + self.signature


def encode_receipts(receipts: tuple[Receipt, ...]) -> bytes:
    """Return the bytes whose digest the survivor set names."""
    return _two(len(receipts)) + b"".join(receipt.encode() for receipt in receipts)


def set_bytes(members: int) -> int:
    """Return the most bytes that a signed survivor set fills: names of 48 characters, in JSON, in base64."""
    return 2048 + 80 * members


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """The signed survivor set and the headers that it rests on."""

    round: int
    survivors: bytes = field(repr=False)  # DSSE envelope, canonical JSON
    receipts: tuple[Receipt, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        head = _head(b"wr-open", self.round) + len(self.survivors).to_bytes(4, "big")
        return head + self.survivors + encode_receipts(self.receipts)

    @classmethod
    def decode(cls, data: bytes, *, members: int) -> "OpenRequest":
        """Read a frame.

        Raises:
            ProtocolError: not this frame.
        """
        reader = _Reader(data, b"wr-open", members)
        length = reader.number(4)
        if length > set_bytes(members):
            raise frame_invalid("the survivor set is too long")
        survivors = reader.take(length)
        receipts = reader.ascending(lambda: _receipt(reader))
        reader.end()
        return cls(round=reader.round, survivors=survivors, receipts=tuple(receipt for _, receipt in receipts))


def _receipt(reader: _Reader) -> tuple[int, Receipt]:
    index = reader.index()
    vector, commitment, signature = reader.take(KEY), reader.take(KEY), reader.take(SIGNATURE)
    return index, Receipt(index=index, vector=vector, commitment=commitment, signature=signature)


@dataclass(frozen=True, kw_only=True)
class Pad:
    """For one other survivor: its share of the opening key, padded, and the token for it."""

    share: bytes = field(repr=False)
    token: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One member's shares for one survivor set, useless unless enough members opened for the same set."""

    round: int
    sender: int
    survivors: bytes  # digest of the survivor set
    own_share: bytes = field(repr=False)
    pads: tuple[tuple[int, Pad], ...] = field(repr=False)
    box: bytes = field(repr=False)
    signature: bytes = field(default=bytes(SIGNATURE), repr=False)

    @property
    def body(self) -> bytes:
        """What the signature covers."""
        head = _head(b"wr-shar", self.round) + _two(self.sender) + self.survivors + self.own_share
        pads = b"".join(_two(index) + pad.share + pad.token for index, pad in self.pads)
        return head + _two(len(self.pads)) + pads + len(self.box).to_bytes(4, "big") + self.box

    def encode(self) -> bytes:
        """Return the frame."""
        return self.body + self.signature

    @classmethod
    def decode(cls, data: bytes, *, members: int) -> "Opening":
        """Read a frame.

        Raises:
            ProtocolError: not this frame.
        """
        reader = _Reader(data, b"wr-shar", members)
        sender, survivors, own_share = reader.index(), reader.take(KEY), reader.take(KEY)
        pads = reader.ascending(lambda: (reader.index(), Pad(share=reader.take(KEY), token=reader.take(KEY))))
        length = reader.number(4)
        if length > KEY * members + TAG:
            raise frame_invalid("the box is too long")
        box, signature = reader.take(length), reader.take(SIGNATURE)
        reader.end()
        return cls(
            round=reader.round,
            sender=sender,
            survivors=survivors,
            own_share=own_share,
            pads=pads,
            box=box,
            signature=signature,
        )
