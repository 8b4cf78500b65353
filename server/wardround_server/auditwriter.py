"""How audit entries become durable: journal first, tree behind it, state from disk after a failure.

Rules (docs/spec/audit.md, rules 13 to 18).
- What `append` returned is durable in the journal; what it raised for was not acknowledged, and the log stays valid.
- Appends that wait for the disk at the same time are written and synced together. Whoever gets the disk first
  writes for all; the others find it done. There is no writer thread, and so no wake-up that could be lost.
- `publish` puts journaled entries into the tree, under a signed checkpoint.
- A disk that does not answer is an error for all who wait, never silence.
- After any failure everything is read again before anything else is written, and a new segment begins.
- Locks are taken in the order tree, disk, state. `state` guards what is in memory and is held briefly; `disk` is held
  for one journal write; `tree` for whatever touches the tree's files or the file of pending keys.
Not done here: what an entry says, offers and cosignatures (`auditlog`).

    >>> writer.append(events)  # doctest: +SKIP
    range(1, 2)
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from wardround_common.audit.events import Event
from wardround_common.errors import StorageError, VerificationError
from wardround_server.auditerrors import damaged, interrupted, stalled, write_failed
from wardround_server.auditfiles import Files, publish
from wardround_server.auditjournal import Batch, Journal
from wardround_server.auditpending import MAX_PENDING_BYTES, Pending, PendingKey, PendingVault
from wardround_server.auditsegments import Segments
from wardround_server.audittree import MAX_BATCH, TreeFolder

MAX_UNPUBLISHED = 8_192
"""Entries in the journal alone; from here on an append publishes first. Bounds memory and the next start."""

PENDING = "audit-pending"
"""File of undisclosed message keys, in the server's state folder."""

JOURNAL = "audit-journal"
"""Folder of entries that are not in the tree yet, in the server's state folder."""

Entry = tuple[Event, frozenset[str]]
"""An event and the sites that must be able to check it before they cosign."""


@dataclass(eq=False, kw_only=True)
class _Group:
    """Entries that will be journaled together, and what became of them."""

    first: int
    entries: list[bytes] = field(default_factory=list)
    keys: list[PendingKey] = field(default_factory=list)
    done: bool = False
    error: StorageError | None = None

    @property
    def end(self) -> int:
        return self.first + len(self.entries)


class Writer:
    """See the module's rules. `recover` comes before anything else.

    Args:
        tree: the log's tree.
        segments: seals events.
        state: the server's state folder.
        vault: seals undisclosed keys.
        files: file-system calls.
        clock: seconds since 1970.
        stall_s: seconds after which a disk that does not answer is an error.
    """

    def __init__(
        self,
        *,
        tree: TreeFolder,
        segments: Segments,
        state: Path,
        vault: PendingVault,
        files: Files,
        clock: Callable[[], float],
        stall_s: float,
    ) -> None:
        self.tree, self.segments = tree, segments
        self.size = 0  # durable entries, in the tree or in the journal
        self.pending = Pending()
        self._journal, self._pending_path = Journal(state / JOURNAL, files), state / PENDING
        self._vault, self._files, self._clock, self._stall_s = vault, files, clock, stall_s
        self._tree_lock, self._disk, self._state = threading.RLock(), threading.Lock(), threading.RLock()
        self._group = _Group(first=0)
        self._unpublished: list[bytes] = []  # durable, not in the tree
        self._stored = Pending()  # what the file of pending keys holds
        self._busy: dict[int, float] = {}  # thread -> since when it waits for the disk
        self._failure: StorageError | None = None  # why everything must be read again
        self._started = self._closed = False

    def append(self, events: Sequence[Entry]) -> range:
        """Seal and log events; return their indexes (see `auditlog.AuditLog.append`)."""
        if len(self._unpublished) > MAX_UNPUBLISHED:
            self.publish()
        with self._staging() as group:
            indexes = self._stage(group, events)
        self._commit(group)
        return indexes

    def append_record(self, entry: bytes) -> int:
        """Log one public entry; return its index. Errors as `append`."""
        with self._staging() as group:
            group.entries.append(entry)
            index = group.end - 1
        self._commit(group)
        return index

    def publish(self) -> None:
        """Put all journaled entries into the tree, under a signed checkpoint.

        Raises:
            StorageError: as `append`; the entries stay in the journal.
        """
        with self.changing():
            with self._taking(self._disk), self._taking(self._state):
                entries, self._unpublished = self._unpublished, []
                pending = self.pending
                self._journal.turn()
            if entries:
                self._store_pending(pending)
                self._grow_tree(entries)
                self._journal.drop()

    def change_pending(self, change: Callable[[Pending], Pending]) -> None:
        """Change what is pending, durably; inside `changing`."""
        with self._taking(self._state):
            self.pending = pending = change(self.pending)
        # Keys of entries that are in the journal alone are in there too: they need not be in the file yet.
        self._store_pending(pending)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the tree, to write to it or beside it.

        Raises:
            StorageError: a file-system call failed; everything is read again before the next.
        """
        with self._taking(self._tree_lock):
            self._make_sound()
            try:
                with self._waiting():
                    yield
            except OSError as error:
                raise self._fail(write_failed(error)) from None
            except (StorageError, VerificationError, ValueError):
                raise  # nothing was written, or it is accounted for already
            except BaseException as error:
                self._fail(interrupted(error))
                raise

    @contextmanager
    def reading(self) -> Iterator[TreeFolder]:
        """Hold the tree, with everything durable in it, to read it.

        Raises:
            StorageError: the folder is damaged, or as `publish`.
        """
        with self._taking(self._tree_lock):
            self.publish()
            try:
                yield self.tree
            except VerificationError as error:
                raise damaged(error) from None

    def require_alive(self) -> None:
        """Return if no file-system call is taking too long; for whoever watches over the log.

        Raises:
            StorageError: audit-stalled.
        """
        for since in list(self._busy.values()):
            if time.monotonic() - since > self._stall_s:
                raise stalled(time.monotonic() - since)

    def close(self) -> None:
        """Publish. What could not be published stays in the journal for the next start."""
        with suppress(StorageError, RuntimeError):
            self.publish()
        self._closed = True
        self.segments.drop()

    def recover(self, *, full: bool) -> None:
        """Take the state from disk; everything journaled goes into the tree.

        Args:
            full: derive the whole tree again, not only its right edge.

        Raises:
            StorageError: damaged, or a file-system call failed.
        """
        with self._taking(self._tree_lock), self._taking(self._disk), self._taking(self._state):
            if self._started and self._failure is None:
                return  # another thread was here
            self.segments.drop()
            self._group.error = self._failure  # what is staged there has numbers that may be taken
            try:
                with self._waiting():
                    self._read_back(full=full)
            except VerificationError as error:
                raise damaged(error) from None
            except OSError as error:
                raise write_failed(error) from None
            self.size = self.tree.size
            self._group, self._unpublished = _Group(first=self.size), []
            self._failure, self._started = None, True

    # -- group commit

    @contextmanager
    def _staging(self) -> Iterator[_Group]:
        """Give the group that is open; what is added to it has its place in the log."""
        self._make_sound()
        with self._taking(self._state):
            if self._failure is not None:  # another thread's write failed a moment ago
                raise self._failure
            yield self._group

    def _stage(self, group: _Group, events: Sequence[Entry]) -> range:
        now = self._clock()
        try:
            with self._waiting():
                entries = self.segments.entries_for(len(events), now=now)
        except OSError as error:
            raise self._fail(write_failed(error)) from None
        first, keys = group.end + len(entries), list[PendingKey]()
        for index, (event, sites) in enumerate(events, first):
            entry, key = self.segments.seal(event, now=now)
            entries.append(entry)
            if sites:
                keys.append(PendingKey(index=index, key=key, sites=tuple(sorted(sites))))
        group.entries += entries
        group.keys += keys
        return range(first, first + len(events))

    def _commit(self, group: _Group) -> None:
        """Return once the group is durable; whoever comes first writes it for all."""
        with self._taking(self._disk):
            if not group.done and group.error is None:
                self._write(group)
        if group.error is not None:
            raise group.error

    def _write(self, group: _Group) -> None:
        """Write the open group; appends may stage into the next one meanwhile."""
        with self._taking(self._state):
            self._group = _Group(first=group.end)
        keys = self._vault.seal(Pending(keys=tuple(group.keys))) if group.keys else b""
        try:
            with self._waiting():
                self._journal.append(Batch(first=group.first, entries=tuple(group.entries), keys=keys))
        except OSError as error:
            group.error = self._fail(write_failed(error))
            return
        except BaseException as error:
            group.error = self._fail(interrupted(error))
            raise
        with self._taking(self._state):
            self._unpublished += group.entries
            self.pending = self.pending.with_keys(group.keys)
            self.size, group.done = group.end, True

    # -- state on disk

    def _read_back(self, *, full: bool) -> None:
        self._stored = self._load_pending()
        self.tree.load(full=full, witnessed=max(self._stored.witnessed.values(), default=0))
        size = self.tree.size
        batches = self._journal.read(size)
        pending = self._stored.up_to(size)
        for batch in batches:
            keys = self._vault.open(batch.keys).keys if batch.keys else ()
            pending = pending.with_keys(key for key in keys if key.index >= size)
        self._store_pending(pending)  # a key left in the file would later pass for another entry's
        entries = [entry for batch in batches for entry in batch.entries]
        self._grow_tree(entries[size - batches[0].first :] if batches else [])
        self._journal.clear()
        self.pending = pending

    def _grow_tree(self, entries: Sequence[bytes]) -> None:
        for at in range(0, len(entries), MAX_BATCH):
            self.tree.commit(entries[at : at + MAX_BATCH])

    def _store_pending(self, pending: Pending) -> None:
        if pending != self._stored:
            publish(self._files, {self._pending_path: self._vault.seal(pending)}, mode=0o600)
            self._stored = pending

    def _load_pending(self) -> Pending:
        try:
            with self._pending_path.open("rb") as file:
                return self._vault.open(file.read(MAX_PENDING_BYTES))
        except FileNotFoundError:
            return Pending()

    # -- failure

    def _make_sound(self) -> None:
        if self._closed:
            raise RuntimeError("the audit log is closed")
        if self._failure is not None:
            self.recover(full=False)

    def _fail(self, error: StorageError) -> StorageError:
        """Remember that everything must be read again; what is staged and not written is refused with it."""
        with self._state:
            self._failure = self._group.error = error
        return error

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        thread = threading.get_ident()
        if thread in self._busy:
            yield
            return
        self._busy[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._busy[thread]

    @contextmanager
    def _taking(self, lock: "threading.Lock | threading.RLock") -> Iterator[None]:
        if not lock.acquire(timeout=self._stall_s):
            raise stalled(self._stall_s)
        try:
            yield
        finally:
            lock.release()
