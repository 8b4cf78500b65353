"""The audit log's only writer: seals events, logs them, offers checkpoints for cosigning.

Rules (docs/spec/audit.md, rules 3 and 11 to 15).
- What `append` returned is durable; what it raised for was not acknowledged, and the log stays valid.
- After any failure the folder is read again before anything else is written, and a new segment begins.
- One process writes (flock); within it any thread may call.
- A folder that does not fit its checkpoint is refused, never repaired.
Not done here: the tree's files (`audittree`), which events to log, who is a member, whether a cosignature is genuine
(`witness.verify_cosignature`), transport.

    >>> log = AuditLog.open(home / "audit", log_key=key, origin="operator.wardround", reviewers=reviewers,
    ...                     clock=time.time)  # doctest: +SKIP
    >>> log.append([(ServerStopped(), frozenset())])  # doctest: +SKIP
    range(1, 2)
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.events import Event
from wardround_common.audit.framing import frame_record
from wardround_common.audit.note import add_lines, line_name
from wardround_common.audit.seal import Sealer
from wardround_common.audit.segment import parse_recipient, wrap_seed
from wardround_common.audit.tiles import consistency_proof, inclusion_proof
from wardround_common.documents import Digest
from wardround_common.errors import StorageError, VerificationError
from wardround_common.rounds import CheckpointOffer, Disclosed
from wardround_common.study import Reviewer
from wardround_server.auditfiles import Files, OsFiles, make_folder, publish
from wardround_server.auditpending import MAX_PENDING_BYTES, Pending, PendingKey, open_pending, seal_pending
from wardround_server.audittree import MAX_BATCH, TreeFolder

SEGMENT_SECONDS = 86_400.0
"""A stolen live ratchet opens what comes after it in its segment; a day bounds that."""

SEGMENT_ENTRIES = 65_536
"""Bounds what one seed opens."""

MAX_OFFER_BYTES = 512 << 10
"""Entries in one offer; base64 and proofs keep it below `documents.MAX_DOCUMENT_BYTES`."""

PENDING = "audit-pending"
"""File of undisclosed message keys, in the server's state folder."""


class AuditLog:
    """An open audit log; see the module's rules. Close it, or use it as a context manager."""

    def __init__(
        self,
        *,
        folder: Path,
        lock: IO[bytes],
        log_key: Ed25519PrivateKey,
        origin: str,
        reviewers: Sequence[Reviewer],
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        files: Files,
        pending: Path,
    ) -> None:
        self._tree = TreeFolder(folder=folder, log_key=log_key, origin=origin, files=files)
        self._folder, self._lock_file, self._key = folder, lock, log_key
        self._clock, self._random, self._files, self._pending_path = clock, random_bytes, files, pending
        self._recipients = _recipients(reviewers)
        self._lock = threading.RLock()
        self._uncounted: dict[int, str] = {}  # tree size -> note with fewer lines than a quorum
        self._pending = Pending()
        self._sealer: Sealer | None = None
        self._segment_since = 0.0
        self._stale, self._closed = True, False

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        log_key: Ed25519PrivateKey,
        origin: str,
        reviewers: Sequence[Reviewer],
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes] = os.urandom,
        files: Files | None = None,
        pending: Path | None = None,
    ) -> Self:
        """Open or create the audit folder; everything in it is checked first.

        Args:
            folder: the `audit/` folder.
            log_key: signs checkpoints.
            origin: the log's key name, e.g. `operator.wardround`.
            reviewers: who can read; at least one.
            clock: seconds since 1970, for claimed times only.
            random_bytes: source of seeds.
            files: file-system calls (tests inject failures).
            pending: file of undisclosed keys; `state/audit-pending` beside `folder` when left out.

        Raises:
            StorageError: audit-locked, audit-damaged, audit-disk-full, audit-write-failed, audit-pending-damaged.
            ConfigError: a reviewer's recipient is malformed.
        """
        files = files or OsFiles()
        lock = _lock_folder(files, folder)
        try:
            log = cls(
                folder=folder,
                lock=lock,
                log_key=log_key,
                origin=origin,
                reviewers=reviewers,
                clock=clock,
                random_bytes=random_bytes,
                files=files,
                pending=pending or folder.parent / "state" / PENDING,
            )
            log._recover(full=True)
        except BaseException:
            lock.close()
            raise
        return log

    @property
    def verifier_key(self) -> str:
        """The log's C2SP verifier key, for studies and trust files."""
        return str(self._tree.key)

    @property
    def size(self) -> int:
        """Number of durable entries."""
        return self._tree.size

    @property
    def checkpoint(self) -> str:
        """The newest checkpoint, signed by the log."""
        return self._tree.checkpoint

    @property
    def cosigned(self) -> str:
        """The newest checkpoint with a quorum's cosignatures; empty before the first."""
        return self._tree.cosigned

    def append(self, events: Sequence[tuple[Event, frozenset[str]]]) -> range:
        """Seal and log events; durable and under a signed checkpoint when this returns.

        Args:
            events: each with the sites that must be able to check it before they cosign.

        Returns:
            The events' indexes.

        Raises:
            StorageError: audit-disk-full, audit-write-failed, audit-damaged; nothing is acknowledged.
            ProtocolError: audit-event-too-large.
        """
        if not events or len(events) > MAX_BATCH:
            raise ValueError(f"append takes 1 to {MAX_BATCH} events")
        with self._lock, self._writing():
            now = self._clock()
            entries = self._segment_for(len(events), now)
            assert self._sealer is not None
            first, keys = self.size + len(entries), []
            for index, (event, sites) in enumerate(events, first):
                entry, key = self._sealer.seal(event.to_bytes(), time=int(now))
                entries.append(entry)
                keys.append(PendingKey(index=index, key=key, sites=tuple(sorted(sites))))
            pending = self._pending.with_keys(keys)
            if pending.keys != self._pending.keys:
                self._store_pending(pending)
            self._tree.commit(entries)
            return range(first, first + len(events))

    def offer(
        self, study: Digest, round_: int, site: str, old_size: int, *, size: int | None = None
    ) -> CheckpointOffer:
        """Return what `site` needs to cosign, given the tree size that it remembers.

        A site that is far behind is offered an earlier tree first (docs/spec/audit.md, rule 12).

        Args:
            study: for the offer.
            round_: for the offer.
            site: the hospital.
            old_size: the tree size that it remembers, 0 before its first.
            size: tree to offer; the newest when left out. Offers over one size have one checkpoint.

        Raises:
            StorageError: audit-log-behind when the site has seen more than this log holds.
        """
        with self._lock, self._reading():
            if size is not None and not old_size <= size <= self.size:
                raise ValueError(f"no tree of {size} entries to offer after {old_size}")
            if old_size > self.size:
                raise StorageError(
                    "audit-log-behind",
                    f"{site} has cosigned {old_size} audit entries; this log holds {self.size}",
                    next_step="an old copy of the audit folder was restored: stop, and bring back the newest one",
                )
            chosen, size = self._fitting(site, old_size, self.size if size is None else size)
            note = self._tree.note_at(size)
            return CheckpointOffer(
                study=study,
                round=round_,
                checkpoint=note,
                old_size=old_size,
                consistency=consistency_proof(old_size, size, self._tree.reader.tile),
                disclosed=tuple(
                    Disclosed(
                        index=key.index,
                        entry=entry,
                        key=key.key,
                        proof=inclusion_proof(key.index, size, self._tree.reader.tile),
                    )
                    for key, entry in chosen
                ),
            )

    def add_cosignatures(self, lines: Sequence[str], size: int, *, quorum: int = 1) -> str:
        """Store cosignature lines over the tree of `size`; return its note with all lines so far.

        The caller has verified each line (`witness.verify_cosignature`).

        The note becomes `cosigned` once it has `quorum` lines and no newer one is stored. The keys that
        the lines' sites no longer need are dropped.

        Raises:
            StorageError: audit-disk-full, audit-write-failed.
            VerificationError: a line is malformed.
        """
        if not 0 < size <= self.size:
            raise ValueError(f"no tree of {size} entries to cosign")
        with self._lock, self._writing():
            known = self._tree.cosigned if size == self._tree.cosigned_size else self._uncounted.get(size)
            note = add_lines(known or self._tree.note_at(size), lines)
            if note.count("\n— ") - 1 >= quorum and size >= self._tree.cosigned_size:
                self._tree.store_cosigned(note, size)
                self._uncounted = {at: text for at, text in self._uncounted.items() if at > size}
            elif size > self._tree.cosigned_size:
                self._uncounted[size] = note
            pending = self._pending
            for line in lines:
                pending = pending.after_cosigning(line_name(line).removesuffix(".wardround"), size)
            self._store_pending(pending)
            return note

    def witnessed(self, site: str) -> int:
        """Return the largest tree size that `site` is known to have cosigned, 0 for none."""
        return self._pending.witnessed.get(site, 0)

    def forget(self, site: str) -> None:
        """Drop the keys kept for a site that was revoked."""
        with self._lock, self._writing():
            self._store_pending(self._pending.without_site(site))

    def set_reviewers(self, reviewers: Sequence[Reviewer]) -> None:
        """Use other reviewers from the next entry on (a new segment begins).

        Raises:
            ConfigError: a recipient is malformed.
        """
        with self._lock:
            recipients = _recipients(reviewers)
            if recipients != self._recipients:
                self._recipients, self._sealer = recipients, None

    def proof(self, index: int) -> str:
        """Return entry `index`'s C2SP tlog-proof, against the cosigned checkpoint where it is covered."""
        with self._lock, self._reading():
            note = self._tree.cosigned if index < self._tree.cosigned_size else self._tree.checkpoint
            return self._tree.reader.proof_text(index, note, self._tree.key)

    def close(self) -> None:
        """Release the folder."""
        with self._lock:
            self._closed, self._sealer = True, None
            self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _segment_for(self, count: int, now: float) -> list[bytes]:
        """Return the entries to log first: a new segment's segment.open, whose age file is durable, or nothing."""
        sealer = self._sealer
        young = 0 <= now - self._segment_since < SEGMENT_SECONDS
        if sealer and young and sealer.count + count <= SEGMENT_ENTRIES:
            return []
        segment, seed = self._random(8), self._random(32)
        wrap, opened = wrap_seed(seed, self._recipients)
        publish(self._files, {self._folder / "keys" / f"{segment.hex()}.age": wrap})
        self._sealer, self._segment_since = Sealer(segment=segment, seed=seed), now
        return [frame_record(segment, opened, time=int(now))]

    def _store_pending(self, pending: Pending) -> None:
        publish(self._files, {self._pending_path: seal_pending(pending, self._key)}, mode=0o600)
        self._pending = pending

    def _load_pending(self) -> Pending:
        try:
            with self._pending_path.open("rb") as file:
                return open_pending(file.read(MAX_PENDING_BYTES), self._key)
        except FileNotFoundError:
            return Pending()

    def _recover(self, *, full: bool) -> None:
        """Take the state from disk, as after a start."""
        self._sealer = None
        try:
            pending = self._load_pending()
            self._tree.load(full=full, witnessed=max(pending.witnessed.values(), default=0))
            self._pending = pending.up_to(self.size)
            if self._pending != pending:  # a key left in the file would later pass for another entry's
                self._store_pending(self._pending)
        except VerificationError as error:
            raise _damaged(error) from None
        except OSError as error:
            raise _write_failed(error) from None
        self._stale = False

    def _fitting(self, site: str, old_size: int, size: int) -> tuple[list[tuple[PendingKey, bytes]], int]:
        """Return (keys and entries to disclose, tree size to offer, at most `size`)."""
        chosen: list[tuple[PendingKey, bytes]] = []
        room = MAX_OFFER_BYTES
        for key in self._pending.up_to(size).keys_for(site, old_size):
            entry = self._tree.reader.entry(key.index, self.size)
            room -= len(entry)
            if room < 0:
                return chosen, key.index
            chosen.append((key, entry))
        return chosen, size

    # -- failure

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._ready()
        self._stale = True  # until everything below has succeeded
        try:
            yield
        except OSError as error:
            raise _write_failed(error) from None
        self._stale = False

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._ready()
        try:
            yield
        except VerificationError as error:
            raise _damaged(error) from None

    def _ready(self) -> None:
        if self._closed:
            raise RuntimeError("the audit log is closed")
        if self._stale:
            self._recover(full=False)


def _recipients(reviewers: Sequence[Reviewer]) -> tuple[str, ...]:
    if not reviewers:
        raise ValueError("an audit log needs at least one reviewer")
    recipients = tuple(sorted({reviewer.recipient for reviewer in reviewers}))
    for recipient in recipients:
        parse_recipient(recipient)
    return recipients


def _lock_folder(files: Files, folder: Path) -> IO[bytes]:
    try:
        make_folder(files, folder)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115 - held for the log's life
    except OSError as error:
        raise _write_failed(error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _write_failed(error) from None
        raise StorageError(
            "audit-locked",
            f"another process writes the audit log in {folder}",
            next_step="stop the other server of this home first",
        ) from None
    return lock


def _write_failed(error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            "audit-disk-full",
            "the disk is full: the audit entry was not written, so nothing goes on",
            next_step="make room on the audit log's disk; the server goes on by itself, the log is intact",
        )
    return StorageError(
        "audit-write-failed",
        f"the audit log cannot be written: {error.strerror}",
        next_step="check the disk and the folder's permissions; nothing was acknowledged, the log is intact",
    )


def _damaged(error: VerificationError) -> StorageError:
    return StorageError(
        "audit-damaged",
        f"the audit log is damaged: {error}",
        next_step="stop; run `wardround audit verify` on the folder and bring back its newest intact copy",
    )
