"""The ledger's file: SQLite opened so that what is committed stays, and its errors in our words.

Rules.
- WAL with synchronous=FULL: a commit returns after fdatasync. Tables are STRICT, foreign keys are on.
- One *writer* of rounds, the daemon, by flock on a side file; commands such as `approve` and `status` open the same
  ledger beside it and wait for SQLite's own lock.
- The side file also remembers that a ledger was there: a ledger that vanished is an error, never a fresh, empty budget.
- Every SQLite error becomes a StorageError; a failed transaction leaves the ledger as it was.
Not done here: what the rows mean (`ledger`).
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardround_common.errors import StorageError
from wardround_common.files import sync_folder

BUSY_SECONDS = 15.0
"""Transactions last milliseconds; a lock held for so long means a stuck process."""

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "foreign_keys=ON")
"""Of every connection. With synchronous below FULL a power cut forgets commits (tests/client/test_ledger_disk.py)."""

_APPLICATION = 0x77617264  # "ward"
_VERSION = 2
_SCHEMA = """
CREATE TABLE studies (
    study       TEXT PRIMARY KEY,           -- digest
    name        TEXT NOT NULL,
    mechanism   BLOB NOT NULL,              -- record of one round: the study's constants
    rounds      INTEGER NOT NULL CHECK (rounds > 0),  -- reserved, spare rounds included
    delta       REAL NOT NULL CHECK (delta > 0),
    epsilon     REAL NOT NULL,              -- price of the whole plan when it was reserved
    closed      INTEGER NOT NULL DEFAULT 0 CHECK (closed IN (0, 1)),  -- 1: only rounds that began still count
    reserved_at INTEGER NOT NULL,           -- seconds since 1970, UTC
    space       TEXT NOT NULL DEFAULT 'patients',     -- which patients' budget it is charged to
    dataset     TEXT,                       -- NULL: reserved before the ledger noted it
    sites       INTEGER NOT NULL DEFAULT 1 CHECK (sites > 0),  -- members of the study
    set_back    INTEGER NOT NULL DEFAULT 0 CHECK (set_back IN (0, 1))  -- 1: what was spent is unknown, all of it counts
) STRICT;
CREATE TABLE rounds (
    study         TEXT NOT NULL REFERENCES studies (study),
    round         INTEGER NOT NULL CHECK (round > 0),
    plan          TEXT NOT NULL,            -- digest of the only plan that this round may have
    began_at      INTEGER NOT NULL,
    header        BLOB CHECK (length(header) <= 1048576),
    record        BLOB CHECK (length(record) <= 1048576),
    sealed_digest TEXT,
    sealed_length INTEGER,
    committed_at  INTEGER,
    recovered     INTEGER NOT NULL DEFAULT 0 CHECK (recovered IN (0, 1)),  -- 1: from the audit trail, after a restore
    PRIMARY KEY (study, round),
    CHECK ((header IS NULL) = (record IS NULL) AND (header IS NULL) = (sealed_digest IS NULL)
       AND (header IS NULL) = (sealed_length IS NULL) AND (header IS NULL) = (committed_at IS NULL))
) STRICT;
CREATE TABLE filters (
    space        TEXT PRIMARY KEY,
    renyi_order  INTEGER NOT NULL CHECK (renyi_order >= 2)  -- chosen with the space's first study, then kept
) STRICT;
"""
_UPGRADES = {
    1: """
ALTER TABLE studies ADD COLUMN space TEXT NOT NULL DEFAULT 'patients';
ALTER TABLE studies ADD COLUMN dataset TEXT;
ALTER TABLE studies ADD COLUMN sites INTEGER NOT NULL DEFAULT 1 CHECK (sites > 0);
ALTER TABLE studies ADD COLUMN set_back INTEGER NOT NULL DEFAULT 0 CHECK (set_back IN (0, 1));
ALTER TABLE rounds ADD COLUMN recovered INTEGER NOT NULL DEFAULT 0 CHECK (recovered IN (0, 1));
CREATE TABLE filters (
    space        TEXT PRIMARY KEY,
    renyi_order  INTEGER NOT NULL CHECK (renyi_order >= 2)
) STRICT;
INSERT INTO filters SELECT 'patients', renyi_order FROM lifetime_filter;
DROP TABLE lifetime_filter
"""
}
"""From each older format to the next, in one transaction; what was spent is never started anew."""


class LedgerStore:
    """An open ledger file. Use `open`; it is safe to share between threads.

    Args:
        path: the database.
        database: its connection.
        side: descriptor of the side file, holding the writer's lock if this is the writer.
        writer: whether this process may write rounds.
    """

    def __init__(self, path: Path, database: sqlite3.Connection, side: int, *, writer: bool) -> None:
        self.path = path
        self.writer = writer
        self._database = database
        self._side = side
        self._mutex = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, writer: bool) -> "LedgerStore":
        """Open the ledger, creating it the very first time.

        Raises:
            StorageError: another writer runs, or the file is missing, damaged, foreign or cannot be used.
        """
        side = _open_side(path, writer=writer)
        try:
            store = cls(path, _connect(path, side), side, writer=writer)
            store._prepare()
        except BaseException:
            os.close(side)
            raise
        return store

    def close(self) -> None:
        """Close the file and let another writer in."""
        with self._mutex:
            self._database.close()
            if self._side >= 0:
                os.close(self._side)
            self._side = -1

    def query(self, sql: str, *values: Any) -> list[Any]:
        """Return all rows of one SELECT."""
        with self._mutex, _translated(self.path):
            return self._database.execute(sql, values).fetchall()

    def execute(self, sql: str, *values: Any) -> None:
        """Run one statement inside a `transaction`."""
        with _translated(self.path):
            self._database.execute(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is durable at the end, or nothing of it is.

        Raises:
            StorageError: it could not be made durable; nothing was changed.
        """
        with self._mutex, _translated(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite may have rolled back by itself
                    self._database.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        try:
            self._check_or_create()
        except BaseException:
            self._database.close()
            raise
        with _translated(self.path):
            if not os.pread(self._side, 1, 0):
                os.pwrite(self._side, b"a ledger lies beside this file\n", 0)
                os.fsync(self._side)

    def _check_or_create(self) -> None:
        application, version, tables = self._identity()
        if (application, version, tables) == (0, 0, 0) or (application == _APPLICATION and version in _UPGRADES):
            with self.transaction():
                self._create_or_upgrade()
            application, version, _ = self._identity()
        if application != _APPLICATION or version != _VERSION:
            raise StorageError(
                "ledger-foreign",
                f"{self.path} is no ledger of this wardround version (format {version})",
                next_step="restore the ledger, or run the wardround version that wrote it",
            )
        if self.query("PRAGMA quick_check(1)") != [("ok",)]:
            raise _damaged(self.path)

    def _create_or_upgrade(self) -> None:
        found = self._identity()  # again, inside the transaction: another process may have come first
        if found == (0, 0, 0):
            self._run(_SCHEMA)
            self.execute(f"PRAGMA application_id = {_APPLICATION}")
        for version in range(found[1] or _VERSION, _VERSION):
            self._run(_UPGRADES[version])
        self.execute(f"PRAGMA user_version = {_VERSION}")

    def _run(self, script: str) -> None:
        for statement in script.split(";\n"):
            self.execute(statement)

    def _identity(self) -> tuple[int, int, int]:
        (application,), (version,) = self.query("PRAGMA application_id")[0], self.query("PRAGMA user_version")[0]
        return application, version, self.query("SELECT count(*) FROM sqlite_schema")[0][0]


def _open_side(path: Path, *, writer: bool) -> int:
    side = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        side = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if writer:
            fcntl.flock(side, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(side)
        raise StorageError(
            "ledger-locked",
            f"another daemon already runs on {path.parent.parent}",
            next_step="stop it first: one hospital, one daemon",
        ) from None
    except OSError as error:
        raise _unusable(path, error.strerror or "unknown error") from None
    return side


def _connect(path: Path, side: int) -> sqlite3.Connection:
    if not path.exists() and os.pread(side, 1, 0):
        raise StorageError(
            "ledger-missing",
            f"the ledger {path} is gone: what was spent of the privacy budget is unknown",
            next_step="restore it from backup; delete its .lock file only if this hospital starts with new patients",
        )
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_folder(path.parent)
    except OSError as error:
        raise _unusable(path, error.strerror or "unknown error") from None
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        with _translated(path):
            for pragma in PRAGMAS:
                database.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _storage_error(path, error) from None
    except OSError as error:
        raise _unusable(path, error.strerror or "unknown error") from None


def _storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_FULL:
        return StorageError(
            "ledger-full",
            f"the disk is full: {path} was not changed",
            next_step="free disk space; the round is then answered again",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(
            "ledger-busy",
            f"{path} was locked by another process for {BUSY_SECONDS:g} seconds",
            next_step="look for a hanging wardround or sqlite3 process on this machine",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT):
        return _damaged(path)
    return _unusable(path, str(error))


def _damaged(path: Path) -> StorageError:
    return StorageError(
        "ledger-damaged",
        f"{path} is damaged",
        next_step="restore it from backup; rounds that began after the backup count as spent, so tell the reviewer",
    )


def _unusable(path: Path, why: str) -> StorageError:
    return StorageError(
        "ledger-unusable", f"cannot use {path}: {why}", next_step="mend permissions or the disk, then start again"
    )
