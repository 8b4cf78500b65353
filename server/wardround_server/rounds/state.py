"""What the server must remember of a study's rounds to resume them.

Rules.
- A round's plan is stored before it is sent; the same plan is sent after a restart.
- The outcome (new adapter, survivors, audit entries) is stored before the entries are written.
- A round is sealed when the quorum's cosigned checkpoint is stored; sealed rounds never change.
- A round that failed keeps its number.

A round goes through: planned, aggregated or failed, logged, sealed.
"""

from typing import Literal

from pydantic import Field

from wardround_common.documents import Document, Name
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_server.database import Database

Phase = Literal["planned", "aggregated", "failed", "logged", "sealed"]

_ROUNDS = """CREATE TABLE IF NOT EXISTS rounds (
    study TEXT NOT NULL, round INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (study, round)
) STRICT"""

_GOOD_ROUNDS = """CREATE INDEX IF NOT EXISTS good_rounds ON rounds (study, round)
    WHERE json_extract(CAST(record AS TEXT), '$.adapter') IS NOT NULL"""
"""What a round costs must not grow with the rounds before it, so nobody reads them all to count them."""

_LAST = "SELECT record FROM rounds WHERE study = ? ORDER BY round DESC LIMIT 1"
_LAST_GOOD = """SELECT record FROM rounds
    WHERE study = ? AND json_extract(CAST(record AS TEXT), '$.adapter') IS NOT NULL ORDER BY round DESC LIMIT 1"""
_COUNT_GOOD = """SELECT count(*) AS good FROM rounds
    WHERE study = ? AND json_extract(CAST(record AS TEXT), '$.adapter') IS NOT NULL"""

_MESSAGES = """CREATE TABLE IF NOT EXISTS secagg (
    study TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, site TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (study, round, kind, site)
) STRICT"""

Kind = Literal["offer", "keys", "parcels", "roster", "answer", "set", "opening"]
"""What is kept of a round under secure aggregation: members' messages as they came (large ones by reference), and
what the server fixed: whose keys were shown (`keys`), who may mask (`roster`), the signed survivor set (`set`)."""


class RoundRecord(Document):
    """Everything stored about one round."""

    plan: RoundPlan
    phase: Phase = "planned"
    adapter: BlobRef | None = None  # the global adapter after the round
    survivors: tuple[Name, ...] = ()
    events: tuple[bytes, ...] = Field(default=())  # entries to write when the outcome is known, canonical JSON
    concerned: tuple[tuple[Name, ...], ...] = ()  # the sites that each entry concerns
    failed: str = ""  # reason of `RoundFailed`
    checkpoint: str = ""  # the cosigned checkpoint that seals the round

    def moved(self, phase: Phase, **changes: object) -> "RoundRecord":
        """Return the record in its next phase."""
        return self.model_copy(update={"phase": phase, **changes})


class RoundState:
    """The rounds of all studies in the server's database. Thread-safe.

    Args:
        database: the server's SQLite file (WAL, synchronous=FULL).

    Its methods raise StorageError when the disk is full or the file damaged; then nothing was changed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.transaction() as db:
            db.execute(_ROUNDS)
            db.execute(_GOOD_ROUNDS)
            db.execute(_MESSAGES)

    def rounds(self, study: str) -> tuple[RoundRecord, ...]:
        """Return all rounds of `study` in order."""
        rows = self._database.rows("SELECT record FROM rounds WHERE study = ? ORDER BY round", study)
        return tuple(RoundRecord.from_bytes(row["record"]) for row in rows)

    def last(self, study: str) -> RoundRecord | None:
        """Return the newest round of `study`, None before the first."""
        return self._one(_LAST, study)

    def last_good(self, study: str) -> RoundRecord | None:
        """Return the newest round that has an adapter, None if there is none."""
        return self._one(_LAST_GOOD, study)

    def good(self, study: str) -> int:
        """Return how many rounds of `study` have an adapter."""
        (row,) = self._database.rows(_COUNT_GOOD, study)
        return int(row["good"])

    def _one(self, query: str, study: str) -> RoundRecord | None:
        rows = self._database.rows(query, study)
        return RoundRecord.from_bytes(rows[0]["record"]) if rows else None

    def put(self, record: RoundRecord) -> RoundRecord:
        """Store `record` durably and return it."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO rounds VALUES (?, ?, ?) ON CONFLICT (study, round) DO UPDATE SET record = excluded.record",
                (record.plan.study, record.plan.round, record.to_bytes()),
            )
        return record

    def keep(self, study: str, round_: int, kind: Kind, site: str, body: bytes) -> None:
        """Store a message of secure aggregation durably; `site` is empty for what the server fixed."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO secagg VALUES (?, ?, ?, ?, ?)", (study, round_, kind, site, body))

    def kept(self, study: str, round_: int, kind: Kind) -> dict[str, bytes]:
        """Return the stored messages of one kind, by site."""
        sql = "SELECT site, body FROM secagg WHERE study = ? AND round = ? AND kind = ? ORDER BY site"
        return {row["site"]: row["body"] for row in self._database.rows(sql, study, round_, kind)}

    def forget(self, study: str, round_: int) -> None:
        """Remove the messages of all rounds up to `round_`."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM secagg WHERE study = ? AND round <= ?", (study, round_))
