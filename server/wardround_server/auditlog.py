"""The audit log of a server: append events, offer the tree to hospitals, keep their cosignatures.

Rules (docs/spec/audit.md, rules 11, 12 and 15).
- What `append` returned is durable; what it raised for was not acknowledged, and the log stays valid (`auditwriter`).
- Whoever asks for a checkpoint, an offer or a proof gets one over all durable entries.
- One process writes (flock); within it any thread may call.
- A folder that does not fit its checkpoint is refused, never repaired. A log that is older than what a hospital has
  cosigned is refused, now and at every later start.
Not done here: the tree's files (`audittree`), segments (`auditsegments`), which events to log, who is a member, whether
a cosignature is genuine (`witness.verify_cosignature`), transport.

    >>> log = AuditLog.open(home / "audit", log_key=key, origin="operator.wardround", reviewers=reviewers,
    ...                     clock=time.time)  # doctest: +SKIP
    >>> log.append([(ServerStopped(), frozenset())])  # doctest: +SKIP
    range(1, 2)
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.framing import Segment, SegmentOpen, SegmentRewrap, SegmentShred, ShredReason, frame_record
from wardround_common.audit.note import Checkpoint, add_lines, line_name, open_checkpoint
from wardround_common.audit.reader import read_segments
from wardround_common.audit.segment import wrap_name
from wardround_common.audit.tiles import EMPTY_ROOT, tree_root
from wardround_common.documents import Digest, sha256_digest
from wardround_common.errors import ConfigError
from wardround_common.rounds import CheckpointOffer
from wardround_common.study import Reviewer
from wardround_server.auditerrors import behind, forked_by_restore
from wardround_server.auditfiles import Files, OsFiles, lock_folder, publish
from wardround_server.auditoffers import make_offer
from wardround_server.auditpending import PendingVault
from wardround_server.auditsegments import Segments
from wardround_server.audittree import MAX_BATCH, TreeFolder
from wardround_server.auditwriter import Entry, Writer

STALL_S = 30.0
"""A disk that needs longer for one sync is as good as gone; a busy one needs well below a second."""


class AuditLog:
    """An open audit log; see the module's rules. Close it, or use it as a context manager."""

    def __init__(
        self, *, folder: Path, lock: IO[bytes], writer: Writer, files: Files, clock: Callable[[], float]
    ) -> None:
        self._folder, self._lock_file, self._files, self._clock = folder, lock, files, clock
        self._writer, self._tree = writer, writer.tree
        self._uncounted: dict[int, str] = {}  # tree size -> note with fewer lines than a quorum

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
        state: Path | None = None,
        stall_s: float = STALL_S,
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
            state: folder of the journal and of undisclosed keys; `state` beside `folder` when left out.
            stall_s: seconds after which a disk that does not answer is an error.

        Raises:
            StorageError: audit-locked, audit-damaged, audit-disk-full, audit-write-failed, audit-pending-damaged.
            ConfigError: a reviewer's recipient is malformed.
        """
        files = files or OsFiles()
        lock = lock_folder(files, folder)
        try:
            writer = Writer(
                tree=TreeFolder(folder=folder, log_key=log_key, origin=origin, files=files),
                segments=Segments(keys=folder / "keys", files=files, reviewers=reviewers, random_bytes=random_bytes),
                state=state or folder.parent / "state",
                vault=PendingVault(log_key),
                files=files,
                clock=clock,
                stall_s=stall_s,
            )
            writer.recover(full=True)
        except BaseException:
            lock.close()
            raise
        return cls(folder=folder, lock=lock, writer=writer, files=files, clock=clock)

    @property
    def verifier_key(self) -> str:
        """The log's C2SP verifier key, for studies and trust files."""
        return str(self._tree.key)

    @property
    def size(self) -> int:
        """Number of durable entries."""
        return self._writer.size

    @property
    def checkpoint(self) -> str:
        """The checkpoint over all durable entries, signed by the log."""
        with self._writer.reading() as tree:
            return tree.checkpoint

    @property
    def cosigned(self) -> str:
        """The newest checkpoint with a quorum's cosignatures; empty before the first."""
        return self._tree.cosigned

    @property
    def segment(self) -> str:
        """Name of the segment that is being written, '' between two."""
        return self._writer.segments.current

    def append(self, events: Sequence[Entry]) -> range:
        """Seal and log events; durable when this returns, under a signed checkpoint soon (`publish`).

        Args:
            events: each with the sites that must be able to check it before they cosign.

        Returns:
            The events' indexes.

        Raises:
            StorageError: audit-disk-full, audit-write-failed, audit-damaged, audit-stalled; nothing is acknowledged.
            ProtocolError: audit-event-too-large.
        """
        if not events or len(events) > MAX_BATCH:
            raise ValueError(f"append takes 1 to {MAX_BATCH} events")
        return self._writer.append(events)

    def publish(self) -> None:
        """Put everything durable under a signed checkpoint, for those who read the folder.

        Raises:
            StorageError: as `append`.
        """
        self._writer.publish()

    def require_alive(self) -> None:
        """Return if no file-system call is taking too long; for whoever watches over the log.

        Raises:
            StorageError: audit-stalled.
        """
        self._writer.require_alive()

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
        with self._writer.reading() as tree:
            if size is not None and not old_size <= size <= tree.size:
                raise ValueError(f"no tree of {size} entries to offer after {old_size}")
            if old_size > tree.size:
                raise behind(site, old_size, tree.size)
            keys = self._writer.pending.keys_for(site, old_size)
            return make_offer(tree, keys, study=study, round_=round_, old_size=old_size, size=size)

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
        sites = [line_name(line).removesuffix(".wardround") for line in lines]
        self._writer.publish()
        with self._writer.changing():
            known = self._tree.cosigned if size == self._tree.cosigned_size else self._uncounted.get(size)
            note = add_lines(known or self._tree.note_at(size), lines)
            if note.count("\n— ") - 1 >= quorum and size >= self._tree.cosigned_size:
                self._tree.store_cosigned(note, size)
                self._uncounted = {at: text for at, text in self._uncounted.items() if at > size}
            elif size > self._tree.cosigned_size:
                self._uncounted[size] = note
            self._writer.change_pending(lambda pending: pending.after_cosigning(sites, size))
            return note

    def witnessed(self, site: str) -> int:
        """Return the tree size that `site` is known to have cosigned, 0 for none."""
        return self._writer.pending.witnessed.get(site, 0)

    def note_seen(self, site: str, size: int, note: str) -> None:
        """Remember the checkpoint that `site` remembers.

        Args:
            site: the hospital.
            size: its tree size, 0 for none.
            note: this log's own note over it; not looked at for size 0.

        Raises:
            VerificationError: the note is not this log's.
            StorageError: this log holds other entries, or fewer; then every later start is refused as well.
        """
        head = open_checkpoint(note, self._tree.key) if size else Checkpoint(origin="", size=0, root=EMPTY_ROOT)
        with self._writer.changing():
            self._writer.change_pending(lambda pending: pending.seen_by(site, head.size))
        if head.size > self.size:
            raise behind(site, head.size, self.size)
        with self._writer.reading() as tree:
            if tree_root(head.size, tree.size, tree.reader.tile) != head.root:
                raise forked_by_restore(site, head.size)

    def forget(self, site: str) -> None:
        """Drop the keys kept for a site that was revoked."""
        with self._writer.changing():
            self._writer.change_pending(lambda pending: pending.without_site(site))

    def set_reviewers(self, reviewers: Sequence[Reviewer]) -> None:
        """Use other reviewers from the next entry on (a new segment begins).

        Raises:
            ConfigError: a recipient is malformed.
        """
        self._writer.segments.use(reviewers)

    def proof(self, index: int) -> str:
        """Return entry `index`'s C2SP tlog-proof, against the cosigned checkpoint where it is covered."""
        with self._writer.reading() as tree:
            note = tree.cosigned if index < tree.cosigned_size else tree.checkpoint
            return tree.reader.proof_text(index, note, tree.key)

    # -- segments' age files

    def rewrap(self, segment: str, wrap: bytes, record: SegmentRewrap) -> int:
        """Publish an age file that a reviewer made (`segment.rewrap_seed`) and log it; return the entry's index.

        Whether it holds the seed only reviewers can tell; readers fall back on the older file.

        Raises:
            ConfigError: no such segment, or it was shredded, or the file is not the record's.
            StorageError: as `append`.
        """
        if sha256_digest(wrap) != record.wrap:
            raise _unusable(f"the age file for segment {segment} is not the one that the request describes")
        opened = self._segment(segment).opened.record
        assert isinstance(opened, SegmentOpen)
        with self._writer.changing():
            publish(self._files, {self._folder / "keys" / wrap_name(segment, opened, record.wrap): wrap})
        return self._writer.append_record(frame_record(bytes.fromhex(segment), record, time=int(self._clock())))

    def shred(self, segment: str, reason: ShredReason) -> int:
        """Log that `segment` becomes unreadable, then delete its age files for good; return the entry's index.

        Raises:
            ConfigError: no such segment, or it was shredded before.
            StorageError: as `append`.
        """
        found = self._segment(segment)
        if segment == self.segment:
            self._writer.segments.drop()
        record = SegmentShred(reason=reason)
        index = self._writer.append_record(frame_record(bytes.fromhex(segment), record, time=int(self._clock())))
        opened = found.opened.record
        assert isinstance(opened, SegmentOpen)
        with self._writer.changing():
            for digest in found.wraps:
                self._files.unlink(self._folder / "keys" / wrap_name(segment, opened, digest))
            self._files.sync_folder(self._folder / "keys")
        return index

    def opened_digest(self, segment: str) -> str:
        """Return the digest of a segment's segment.open entry, '' when there is no such segment."""
        with self._writer.reading() as tree:
            found = read_segments(tree.reader, tree.size).get(segment)
        if found is None:
            return ""
        return sha256_digest(frame_record(bytes.fromhex(segment), found.opened.record, time=found.opened.time))

    def segment_times(self) -> dict[str, int]:
        """Return when each segment that was not shredded began (seconds since 1970), in order."""
        with self._writer.reading() as tree:
            found = read_segments(tree.reader, tree.size)
        return {name: segment.opened.time for name, segment in found.items() if not segment.shredded}

    def _segment(self, name: str) -> Segment:
        with self._writer.reading() as tree:
            segment = read_segments(tree.reader, tree.size).get(name)
        if segment is None or segment.shredded:
            raise _unusable(f"there is no segment {name} in this log, or it was shredded")
        return segment

    # -- the end

    def close(self) -> None:
        """Publish and release the folder."""
        self._writer.close()
        self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _unusable(why: str) -> ConfigError:
    return ConfigError(
        "audit-request-unusable",
        why,
        next_step="compare with `wardround audit verify` on a fresh copy of the audit folder, then ask again",
    )
