"""Read an audit folder: its files, and with a reviewer's key its events.

Rules.
- Every file is read bounded; only regular files are read. What is missing or too large is an error.
- A narrower tile or bundle is taken from the beginning of a wider one (docs/spec/audit.md, rule 15).
- An entry that cannot be decrypted, or is of an unknown kind, is shown as such and never dropped.
Not done here: whether the folder is intact, complete or witnessed (`verify`). What `read_entries` returns is
what the folder *says*.

    >>> [entry.kind for entry in read_entries(LogFolder(Path("audit")), identity)]  # doctest: +SKIP
    ['segment.open', 'server.start']
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyrage

from wardround_common.audit.events import Event, Unknown, parse_event
from wardround_common.audit.framing import (
    RecordEntry,
    SealedEntry,
    Segment,
    SegmentChain,
    SegmentOpen,
    SegmentRecord,
    UnknownEntry,
    is_sealed,
    parse_entry,
)
from wardround_common.audit.note import VerifierKey, open_checkpoint
from wardround_common.audit.proof import format_proof
from wardround_common.audit.seal import message_keys, open_entry
from wardround_common.audit.segment import MAX_WRAP_BYTES, unwrap_seed, wrap_name
from wardround_common.audit.tiles import (
    HASH_BYTES,
    MAX_BUNDLE_BYTES,
    TILE_WIDTH,
    TileName,
    bundle_names,
    decode_bundle,
    inclusion_proof,
    parse_tile_path,
)
from wardround_common.errors import ConfigError, ProtocolError, VerificationError
from wardround_common.rounds import MAX_NOTE_BYTES

MAX_IDENTITY_BYTES = 65_536
"""An age identity file has two comments and a line; more is another file."""


class LogFolder:
    """An `audit/` folder, or a copy of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self) -> str:
        """Return the newest checkpoint's note.

        Raises:
            VerificationError: missing or not text.
        """
        note = self._note("log/checkpoint")
        if note is None:
            raise VerificationError(
                "log-file-missing",
                f"there is no log/checkpoint in {self.folder}",
                next_step="give the server's audit folder, or a whole copy of it",
            )
        return note

    def cosigned(self) -> str:
        """Return the newest cosigned checkpoint's note, empty before the first quorum."""
        return self._note("log/checkpoint.cosigned") or ""

    def tile(self, level: int, index: int, width: int) -> bytes:
        """Return a tile's first `width` hashes."""
        data = self._widest(TileName(level=level, index=index, width=width), TILE_WIDTH * HASH_BYTES)
        if len(data) < width * HASH_BYTES:
            raise altered(f"tile {index} of level {level} is too short")
        return data[: width * HASH_BYTES]

    def bundle(self, name: TileName) -> list[bytes]:
        """Return the entries of bundle `name`."""
        exact = self.exists(name.path)
        return decode_bundle(self._widest(name, MAX_BUNDLE_BYTES), name.width, exact=exact)

    def entries(self, size: int, start: int = 0) -> Iterator[bytes]:
        """Yield entries `start` to `size` - 1."""
        for name in bundle_names(size, start):
            yield from self.bundle(name)[max(0, start - name.index * TILE_WIDTH) :]

    def entry(self, index: int, size: int) -> bytes:
        """Return one entry of a log of `size` entries."""
        if not 0 <= index < size:
            raise ValueError(f"no entry {index} in a log of {size}")
        return next(self.entries(size, index))

    def wrap(self, name: str) -> bytes | None:
        """Return the age file `name` (`segment.wrap_name`), or None when it is missing."""
        return self.read(f"keys/{name}", MAX_WRAP_BYTES)

    def proof_text(self, index: int, note: str, log: VerifierKey) -> str:
        """Return the C2SP tlog-proof of one entry against the checkpoint `note`."""
        proof = inclusion_proof(index, open_checkpoint(note, log).size, self.tile)
        return format_proof(index, proof, note)

    def exists(self, path: str) -> bool:
        """Return whether `path` below `log/` is there."""
        return (self.folder / "log" / path).exists()

    def inventory(self) -> tuple[list[TileName], list[str]]:
        """Return (tiles and bundles, other files), as paths below the folder."""
        tiles: list[TileName] = []
        others: list[str] = []
        for where, _, files in os.walk(self.folder):
            for file in files:
                path = (Path(where) / file).relative_to(self.folder).as_posix()
                name = parse_tile_path(path.removeprefix("log/")) if path.startswith("log/tile/") else None
                if name:
                    tiles.append(name)
                else:
                    others.append(path)
        return tiles, others

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a regular file's bytes, or None when it is missing.

        Raises:
            VerificationError: not a readable regular file, or larger than `limit` bytes.
        """
        try:
            # A hostile copy may hold a FIFO; opening it must not block.
            handle = os.open(self.folder / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable_file(path, error.strerror or "error") from None
        try:
            with open(handle, "rb") as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise _unreadable_file(path, "not a regular file")
                data = file.read(min(limit, status.st_size) + 1)
        except OSError as error:
            raise _unreadable_file(path, error.strerror or "error") from None
        if len(data) > limit:
            raise altered(f"{path} is larger than {limit} bytes")
        return data

    def _note(self, path: str) -> str | None:
        data = self.read(path, MAX_NOTE_BYTES)
        if data is None:
            return None
        if not data:
            raise altered(f"{path} is empty")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise altered(f"{path} is not UTF-8 text") from None

    def _widest(self, name: TileName, limit: int) -> bytes:
        """Return the file of `name`, or else that of a wider tile at the same place."""
        data = self.read(f"log/{name.path}", limit)
        if data is not None:
            return data
        whole = TileName(level=name.level, index=name.index)
        partials = self.folder / "log" / f"{whole.path}.p"
        widths = sorted(int(p.name) for p in partials.glob("*") if p.name.isascii() and p.name.isdigit())
        for width in (*(w for w in widths if name.width < w < TILE_WIDTH), TILE_WIDTH):
            data = self.read(f"log/{TileName(level=name.level, index=name.index, width=width).path}", limit)
            if data is not None:
                return data
        raise VerificationError(
            "log-file-missing",
            f"{name.path} is missing from the audit log",
            next_step="copy the whole audit folder again; if it stays missing, ask the operator",
        )


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One entry as a reviewer sees it."""

    index: int
    time: int  # seconds since 1970, the server's claim
    segment: str
    kind: str  # the event's kind; segment.open/rewrap/shred, unknown, unreadable or sealed (no key for this segment)
    event: Event | Unknown | None = None
    record: SegmentRecord | None = None  # of a public entry
    problem: str = ""  # why it is unreadable or sealed


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """An entry's bytes with the message key that opens it, or why there is none."""

    index: int
    data: bytes = field(repr=False)
    key: bytes | str = field(repr=False)  # a text says why the segment cannot be read


def read_entries(folder: LogFolder, identity: Any) -> Iterator[LogEntry]:
    """Yield every entry of the folder, decrypted with a reviewer's age identity.

    The checkpoint's size is taken from the folder and not verified.

    Raises:
        VerificationError: a file is missing or malformed.
    """
    return (open_keyed(keyed) for keyed in keyed_entries(folder, identity))


def keyed_entries(folder: LogFolder, identity: Any) -> Iterator[Keyed]:
    """Yield entries with their keys; `open_keyed` opens them, in any process.

    Raises:
        VerificationError: a file is missing or malformed.
    """
    size = claimed_size(folder.checkpoint())
    # A rewrap comes after the segment that it opens; only logs that have one are read twice.
    rewrapped = any(path.startswith("keys/") and "-" in path for path in folder.inventory()[1])
    segments = read_segments(folder, size) if rewrapped else {}
    keys: Iterator[bytes] | str = "the log does not begin with a segment.open entry"
    for index, data in enumerate(folder.entries(size)):
        if is_sealed(data):
            yield Keyed(index=index, data=data, key=keys if isinstance(keys, str) else next(keys))
            continue
        entry = parse_entry(data)
        if isinstance(entry, RecordEntry) and isinstance(entry.record, SegmentOpen):
            known = segments.get(entry.segment)
            wraps = known.wraps if known else (entry.record.wrap,)
            keys = _segment_keys(folder, entry.segment, entry.record, wraps, identity)
        yield Keyed(index=index, data=data, key="")  # public


def open_keyed(keyed: Keyed) -> LogEntry:
    """Return the entry, decrypted where there is a key.

    Raises:
        VerificationError: not an entry of this format.
    """
    entry = parse_entry(keyed.data)
    if not isinstance(entry, SealedEntry):
        return _public_row(keyed.index, entry)
    if isinstance(keyed.key, str):
        return _row(keyed.index, entry, "sealed", problem=keyed.key)
    return _decrypt(keyed.index, entry, keyed.key)


def read_segments(folder: LogFolder, size: int) -> dict[str, Segment]:
    """Return what the public entries of a log of `size` entries say about its segments, by name, in order.

    Raises:
        VerificationError: a file is missing or malformed, or an entry is not where it belongs.
    """
    chain = SegmentChain()
    for name in bundle_names(size):
        chain.extend(folder.bundle(name))
    return chain.segments


def claimed_size(note: str) -> int:
    """Return the size that a checkpoint states, 0 for no note; nothing is verified.

    Raises:
        VerificationError: it states none.
    """
    size = note.split("\n")[1] if note.count("\n") > 2 else ("" if note else "0")
    if not (size.isascii() and size.isdigit() and len(size) <= 12):
        raise altered("a checkpoint states no size")
    return int(size)


def load_identity(path: Path) -> Any:
    """Return the age identity in a file as `age-keygen` and `wardround audit keygen` write it.

    Raises:
        ConfigError: missing, unreadable, or no identity in it.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_IDENTITY_BYTES).decode(errors="replace").splitlines()
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return pyrage.x25519.Identity.from_str(keys[0])
    except OSError as error:
        raise ConfigError(
            "audit-identity-missing",
            f"cannot read the identity file {path}: {error.strerror}",
            next_step="give the file that `wardround audit keygen` wrote",
        ) from None
    except (IndexError, pyrage.IdentityError):
        raise ConfigError(
            "audit-identity-malformed",
            f"{path} holds no age identity",
            next_step="give the file that `wardround audit keygen` wrote; it has a line AGE-SECRET-KEY-1…",
        ) from None


def altered(why: str) -> VerificationError:
    """Return the error for a file that is not what it must be."""
    return VerificationError(
        "log-file-altered",
        f"the audit log was altered: {why}",
        next_step="copy the audit folder again; if it stays so, keep it as evidence and ask the operator",
    )


def _segment_keys(
    folder: LogFolder, segment: str, opened: SegmentOpen, wraps: Sequence[str], identity: Any
) -> Iterator[bytes] | str:
    """Return the segment's message keys, or why there are none."""
    problem = "its key file is missing"
    for digest in reversed(wraps):
        try:
            wrap = folder.wrap(wrap_name(segment, opened, digest))
            if wrap is not None:
                return message_keys(unwrap_seed(wrap, opened, identity, digest=digest))
        except VerificationError as error:
            problem = str(error)
    return problem


def _public_row(index: int, entry: RecordEntry | UnknownEntry) -> LogEntry:
    if isinstance(entry, RecordEntry):
        return LogEntry(index=index, time=entry.time, segment=entry.segment, kind=entry.kind, record=entry.record)
    problem = f"written by a newer version ({entry.kind})"
    return LogEntry(index=index, time=entry.time, segment=entry.segment, kind="unknown", problem=problem)


def _decrypt(index: int, entry: SealedEntry, key: bytes) -> LogEntry:
    try:
        event = parse_event(open_entry(entry, key))
    except (VerificationError, ProtocolError) as error:
        return _row(index, entry, "unreadable", problem=str(error))
    return _row(index, entry, "unknown" if isinstance(event, Unknown) else event.kind, event=event)


def _row(
    index: int, entry: SealedEntry, kind: str, *, event: Event | Unknown | None = None, problem: str = ""
) -> LogEntry:
    return LogEntry(index=index, time=entry.time, segment=entry.segment, kind=kind, event=event, problem=problem)


def _unreadable_file(path: str, why: str) -> VerificationError:
    return VerificationError(
        "log-file-unreadable",
        f"cannot read {path}: {why}",
        next_step="check that the whole audit folder was copied and that you may read it",
    )
