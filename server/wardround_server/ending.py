"""Aborting studies, and hospitals that leave (docs/spec/ending.md).

Rules.
- An abort or a withdrawal and its audit event are stored in one transaction; neither is ever undone.
- An aborted study gets no further plan. Its members are told, at every connect, until each has
  answered that it stopped.
- A site that withdrew is asked for nothing more in that study; if the others are too few, the study
  is aborted.
Not done here: stopping a running study (`app`), gRPC.

    >>> endings.aborted(study.sha256()) is None  # doctest: +SKIP
    True
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.events import ClientWithdrawn, StudyAborted
from wardround_common.ending import ABORT_TYPE, Abort, AbortReason, ended_study, open_withdrawal
from wardround_common.errors import ConfigError, ProtocolError
from wardround_common.logging import get_logger
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study
from wardround_common.wire.failures import certificate_unknown, study_unknown
from wardround_common.wire.frames import Work
from wardround_server.database import Database
from wardround_server.enrolment import Registry
from wardround_server.studies import Proposal, StudyShelf
from wardround_server.transport.hub import Hub

_TABLES = (
    "CREATE TABLE IF NOT EXISTS aborts (study TEXT PRIMARY KEY, envelope BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS ended (study TEXT NOT NULL, site TEXT NOT NULL, PRIMARY KEY (study, site)) STRICT",
    "CREATE TABLE IF NOT EXISTS withdrawals (study TEXT NOT NULL, site TEXT NOT NULL, envelope BLOB NOT NULL, "
    "PRIMARY KEY (study, site)) STRICT",
    "CREATE TABLE IF NOT EXISTS started (study TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT",
)

log = get_logger("server.ending")


@dataclass(frozen=True, kw_only=True)
class Endings:
    """What ended, in the server's database.

    Args:
        database: the server's SQLite file.
        registry: members, and the outbox of audit events.
        shelf: the studies.
        key: the operator's identity.
        clock: Unix seconds.
    """

    database: Database
    registry: Registry
    shelf: StudyShelf
    key: Ed25519PrivateKey = field(repr=False)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        with self.database.transaction() as db:
            for table in _TABLES:
                db.execute(table)

    def abort(self, study: Study, reason: AbortReason) -> Envelope:
        """End `study` for good; again for the same study changes nothing.

        Raises:
            ConfigError: it was released.
            StorageError: not stored; the study goes on.
        """
        digest = study.sha256()
        if self.shelf.home.completed(study.name).exists():
            raise ConfigError(
                "study-released",
                f"study {study.name} was released; it cannot be aborted",
                next_step="a released model can only be withdrawn by telling everybody who has it",
            )
        if (known := self.aborted(digest)) is not None:
            return known
        envelope = sign_document(Abort(study=digest, reason=reason).to_bytes(), ABORT_TYPE, self.key)
        with self.database.transaction() as db:
            db.execute("INSERT INTO aborts VALUES (?, ?)", (digest, envelope.to_bytes()))
            event = StudyAborted(study=digest, envelope=envelope)
            self.registry.queue_event(event, {member.name for member in study.cohort.members})
        return envelope

    def aborted(self, study: str) -> Envelope | None:
        """Return the signed abort of the study with this digest, or None."""
        rows = self.database.rows("SELECT envelope FROM aborts WHERE study = ?", study)
        return Envelope.from_bytes(rows[0]["envelope"]) if rows else None

    def reason(self, study: str) -> AbortReason | None:
        """Return why the study was aborted, or None."""
        envelope = self.aborted(study)
        return Abort.from_bytes(envelope.payload_bytes()).reason if envelope else None

    def withdraw(self, site: str, data: bytes) -> bytes:
        """Take the signed withdrawal of `site` and return its receipt: the same, signed by the operator too.

        Raises:
            VerificationError: not this site's.
            ConfigError: no such study concerns it.
            ProtocolError: malformed.
        """
        member = self.registry.members().get(site)
        if member is None:
            raise certificate_unknown(f"{site} is not enrolled")
        envelope = Envelope.from_bytes(data)
        withdrawal = open_withdrawal(envelope, site=site, identity=member.identity)
        mine = [p.study for p in self.shelf.all() if _names(p.study, site, member.identity)]
        left = [study for study in mine if withdrawal.study in (None, study.sha256())]
        if withdrawal.study is not None and not left:
            raise study_unknown("no such study concerns this site")
        for study in left:
            self._store(study, site, envelope)
        if withdrawal.study is None:
            self.registry.queue_event(ClientWithdrawn(site=site, study=None, envelope=envelope), {site})
            self.registry.revoke(site)
        return envelope.with_signature(self.key).to_bytes()

    def _store(self, study: Study, site: str, envelope: Envelope) -> None:
        digest = study.sha256()
        if site in self.withdrawn(digest):
            return
        with self.database.transaction() as db:
            db.execute("INSERT INTO withdrawals VALUES (?, ?, ?)", (digest, site, envelope.to_bytes()))
            event = ClientWithdrawn(site=site, study=digest, envelope=envelope)
            self.registry.queue_event(event, {member.name for member in study.cohort.members})

    def withdrawn(self, study: str) -> frozenset[str]:
        """Return the sites that have left the study with this digest."""
        return frozenset(
            row["site"] for row in self.database.rows("SELECT site FROM withdrawals WHERE study = ?", study)
        )

    def gone(self, study: Study) -> frozenset[str]:
        """Return the members that can never answer again: they left, or came back with another identity."""
        enrolled = self.registry.members()
        others = {
            member.name
            for member in study.cohort.members
            if member.name in enrolled and enrolled[member.name].identity != member.identity
        }
        return self.withdrawn(study.sha256()) | others

    def started(self, study: str) -> None:
        """Remember when the study first ran."""
        with self.database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO started VALUES (?, ?)", (study, int(self.clock())))

    def due(self, study: Study) -> AbortReason | None:
        """Return why the server itself must abort a running study now, or None."""
        digest, cohort = study.sha256(), study.cohort
        present = len(cohort.members) - len(self.gone(study))
        if present < max(cohort.min_cohort, cohort.witness_quorum):
            return "too-few-members"
        rows = self.database.rows("SELECT at FROM started WHERE study = ?", digest)
        if rows and self.clock() - rows[0]["at"] > study.timing.max_hours * 3_600:
            return "out-of-time"
        return None

    def to_tell(self, study: Study) -> tuple[str, ...]:
        """Return the members that have not answered that they stopped, and still take part in anything."""
        digest, enrolled = study.sha256(), self.registry.members()
        rows = self.database.rows("SELECT site FROM ended WHERE study = ?", digest)
        done = {row["site"] for row in rows} | self.withdrawn(digest)
        return tuple(
            member.name
            for member in study.cohort.members
            if member.name not in done and member.name in enrolled and enrolled[member.name].identity == member.identity
        )

    def told(self, study: str, site: str) -> None:
        """Remember that `site` has answered the abort."""
        with self.database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO ended VALUES (?, ?)", (study, site))


@dataclass(kw_only=True)
class AbortNotices:
    """Tells members of aborted studies, without ever waiting for them.

    Args:
        hub: delivers work at every connect until it is answered.
        endings: knows who was told.
    """

    hub: Hub
    endings: Endings
    _posted: dict[str, tuple[str, str]] = field(default_factory=dict)  # message id -> (study, site)

    def offer(self, proposal: Proposal, abort: Envelope) -> None:
        """Send `abort` to every member that was not told yet, once for each process."""
        study = proposal.study.sha256()
        known = set(self._posted.values())
        for site in self.endings.to_tell(proposal.study):
            if (study, site) in known:
                continue
            message = "abort-" + hashlib.sha256(f"{study} {site}".encode()).hexdigest()[:32]
            work = Work(
                message_id=message,
                message_type="query.abort",
                group_id="abort",
                study=study,
                document=abort.to_bytes(),
            )
            self.hub.post(site, work)
            self._posted[message] = (study, site)

    def collect(self) -> None:
        """Take the answers that have come."""
        for message, answer in self.hub.take(list(self._posted)).items():
            study, site = self._posted[message]
            try:
                ended_study(answer.document, study)
            except ProtocolError:
                log.warning("a member did not confirm the abort; it is asked again at the next start", site=site)
            else:
                self.endings.told(study, site)


def _names(study: Study, site: str, identity: str) -> bool:
    return any(member.name == site and member.identity == identity for member in study.cohort.members)
