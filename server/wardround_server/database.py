"""The server's small state: one SQLite file, durable at every commit.

Rules.
- WAL with synchronous=FULL: a committed change survives a power cut. Vectors never go in here.
- One `Database` may be used by several threads; every transaction holds its lock. Several
  processes (daemon and command line) may open the same file; SQLite serialises them.
- The outbox holds audit events that were caused outside the daemon. They are added in the same
  transaction as their cause; the daemon, sole writer of the audit log, takes and acknowledges them.

    >>> from wardround_common.audit.events import ClientInvited
    >>> database = Database.open(Path(":memory:"))
    >>> database.queue_event(ClientInvited(site="north"), set())
    >>> [item.event.kind for item in database.take_events()]
    ['client.invited']
"""

import json
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wardround_common.audit.events import Event, Unknown, parse_event
from wardround_common.errors import StorageError, WardroundError

BUSY_TIMEOUT_S = 10.0
"""How long a transaction waits for another process; ours last milliseconds."""

SCHEMA_VERSION = 1
"""Kept in `user_version`; a newer file is refused rather than misread."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
    fingerprint TEXT PRIMARY KEY,  -- of the bootstrap certificate
    site TEXT NOT NULL,
    expires INTEGER NOT NULL,      -- Unix seconds
    state TEXT NOT NULL CHECK (state IN ('open', 'replaced', 'used'))
) STRICT;
CREATE TABLE IF NOT EXISTS members (
    fingerprint TEXT PRIMARY KEY,  -- of the transport certificate
    site TEXT NOT NULL,
    identity TEXT NOT NULL,        -- ed25519:...
    transport TEXT NOT NULL,       -- digest of the transport public key
    enrolled INTEGER NOT NULL,     -- Unix seconds
    expires INTEGER NOT NULL,
    certificate BLOB NOT NULL,     -- DER
    state TEXT NOT NULL CHECK (state IN ('live', 'renewed', 'revoked'))
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_live_certificate ON members (site) WHERE state = 'live';
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event TEXT NOT NULL,           -- canonical JSON
    concerns TEXT NOT NULL         -- JSON list of sites
) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class QueuedEvent:
    """One event of the outbox and the sites that it concerns."""

    id: int
    event: Event
    concerns: frozenset[str]


class Database:
    """The open file. Use `open`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open or create the file (0600) and its tables.

        Raises:
            StorageError: not a database, damaged, of a newer version, or not writable.
        """
        try:
            if str(path) != ":memory:":
                path.touch(mode=0o600, exist_ok=True)
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None)
            _prepare(connection, path)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(f"cannot open {path}: {error}") from None
        return cls(connection)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside one durable all-or-nothing transaction.

        Raises:
            StorageError: disk full, damaged, or locked for too long; nothing was changed.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise _unusable(f"the server's database cannot be written: {error}") from None

    def rows(self, query: str, *arguments: object) -> list[sqlite3.Row]:
        """Return all rows of a read-only query.

        Raises:
            StorageError: damaged or locked for too long.
        """
        with self._lock:
            try:
                return self._connection.execute(query, arguments).fetchall()
            except sqlite3.Error as error:
                raise _unusable(f"the server's database cannot be read: {error}") from None

    def queue_event(self, event: Event, concerns: Collection[str]) -> None:
        """Add one audit event durably; inside a `transaction` it commits with that."""
        entry = (event.to_bytes().decode(), json.dumps(sorted(concerns)))
        with self._lock:
            if self._connection.in_transaction:
                self._connection.execute("INSERT INTO outbox (event, concerns) VALUES (?, ?)", entry)
            else:
                with self.transaction() as connection:
                    connection.execute("INSERT INTO outbox (event, concerns) VALUES (?, ?)", entry)

    def take_events(self, limit: int = 256) -> tuple[QueuedEvent, ...]:
        """Return the oldest events that were not acknowledged, in order."""
        return tuple(_queued(row) for row in self.rows("SELECT * FROM outbox ORDER BY id LIMIT ?", limit))

    def done(self, ids: Collection[int]) -> None:
        """Acknowledge events that are durable in the audit log."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM outbox WHERE id = ?", [(id_,) for id_ in ids])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StorageError(
            "server-database-newer",
            f"{path} was written by a newer wardround (schema {version}; this one knows {SCHEMA_VERSION})",
            next_step="install that version again, or restore the backup that was made before the upgrade",
        )
    connection.executescript(_SCHEMA)
    if version < SCHEMA_VERSION:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _queued(row: sqlite3.Row) -> QueuedEvent:
    try:
        event = parse_event(row["event"].encode())
        if isinstance(event, Unknown):
            raise _unusable(f"the outbox holds an event of unknown kind {event.kind}")
        return QueuedEvent(id=row["id"], event=event, concerns=frozenset(json.loads(row["concerns"])))
    except (WardroundError, ValueError) as error:
        raise _unusable(f"the outbox is damaged: {error}") from None


def _unusable(text: str) -> StorageError:
    return StorageError(
        "server-database",
        text,
        next_step="check free space and owner of state/, and that server and command line are of one version; "
        "else restore state/ from a backup",
    )
