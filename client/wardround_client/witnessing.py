"""This hospital as a witness of one audit log: what it remembers, what it signs, and when it stops.

Rules (docs/spec/audit.md, rules 10 and 19 to 22).
- One memory per log, whatever number of studies share it: the last checkpoint that was cosigned, stored durably before
  the line leaves.
- After every start, a study goes on only when a checkpoint over this site's fresh nonce, cosigned by the study's
  quorum, was seen: an old copy of the log cannot contain the nonce.
- A log that was rolled back or rewritten, or that says something untrue about this site, is never cosigned again. What
  shows it is kept in `evidence/`: both checkpoints, signed by the log, under a statement signed by this site. A person
  decides what follows; until the evidence is moved away, nothing of that log is trained or cosigned.
- An offer of fewer entries than were cosigned may be late (two studies share a log): it is answered with what this site
  remembers, signed by the log. An honest server goes on from there, a restored one stops; one that insists is evidence.
Not done here: what the entries ought to say (`agreed`), transport.

    >>> witness = LogWitness(home, log=study.server.log, site="st-elsewhere", key=key)  # doctest: +SKIP
    >>> accepted = witness.consider(offer)  # doctest: +SKIP
    >>> witness.store(accepted)  # doctest: +SKIP
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from wardround_client.home import Home
from wardround_common.audit.events import Event, WitnessNonce
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.trust import parse_log_key
from wardround_common.audit.witness import WitnessState, consider, forked, verify_quorum
from wardround_common.documents import Digest, Document, Name
from wardround_common.errors import ProtocolError, StorageError, VerificationError
from wardround_common.files import write_durably
from wardround_common.logging import get_logger
from wardround_common.rounds import MAX_NOTE_BYTES, CheckpointOffer, StaleOffer
from wardround_common.signing import sign_document
from wardround_common.study import Study

LOG_EVIDENCE_TYPE = "application/vnd.wardround.log-evidence+json"
"""DSSE payload type of a `LogEvidence`."""

MAX_LATE_OFFERS = 16
"""Offers made before the server knew what this site has cosigned: at most one for each study that runs at once."""

MAX_HEADS = 64
"""Checkpoints that were cosigned here and that a quorum's note may refer to."""

CONVICTING = frozenset({"log-rolled-back", "log-forked", "log-entry-disagrees", "log-entry-unreadable"})
"""Errors that only a wrong log can cause: the offer's checkpoint was signed by the log's key before they arise."""

log = get_logger("client.witness")


class LogEvidence(Document):
    """What this site states, and signs, about a log that it refuses."""

    format: Literal["wardround/log-evidence/1"] = "wardround/log-evidence/1"
    site: Name
    log: str  # C2SP verifier key
    time: int  # seconds since 1970, this site's clock
    code: str
    known: Annotated[str, Field(max_length=MAX_NOTE_BYTES)]  # the checkpoint that this site cosigned, signed by the log
    offered: Annotated[str, Field(max_length=MAX_NOTE_BYTES)]  # the checkpoint that it was offered, signed by the log
    offer: Digest  # of the whole offer, which lies beside


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """An offer that holds; nothing was stored or sent yet."""

    offer: CheckpointOffer = field(repr=False)
    line: str
    state: WitnessState
    events: tuple[Event, ...]


class LogWitness:
    """See the module's rules.

    Args:
        home: where the memory and the evidence lie.
        log: the log's verifier key, pinned.
        site: this hospital's name.
        key: its Ed25519 identity.
        clock: seconds since 1970.
        new_nonce: returns 32 fresh bytes in hex; the operating system's in the daemon.

    Raises:
        StorageError: the memory is damaged.
    """

    def __init__(
        self,
        home: Home,
        *,
        log: str,
        site: str,
        key: Ed25519PrivateKey,
        clock: Callable[[], float] = time.time,
        new_nonce: Callable[[], str] = lambda: secrets.token_hex(32),
    ) -> None:
        self._home, self._log, self._site, self._key, self._clock = home, log, site, key, clock
        self._new_nonce = new_nonce
        self._state = load_witness(home, log)
        self._late = 0  # offers in a row that were too small
        self._heads: OrderedDict[int, bytes] = OrderedDict()  # cosigned: size -> root
        if self._state:
            self._heads[self._state.size] = self._state.root
        self._nonces: dict[str, str] = {}  # study -> what was asked for
        self._asked_at: dict[str, int] = {}  # study -> tree size in which its nonce was seen
        self._fresh: set[str] = set()  # studies

    @property
    def size(self) -> int:
        """Tree size of the newest cosigned checkpoint."""
        return self._state.size if self._state else 0

    def require_trusted(self) -> None:
        """Return if there is no evidence against this log.

        Raises:
            VerificationError: there is; a person must look at it.
        """
        if any(self._home.evidence(self._log).glob("*")):
            raise VerificationError(
                "log-distrusted",
                f"this site holds evidence against the audit log: {self._home.evidence(self._log)}",
                next_step="compare logs with the other members; move the folder away only when you know what happened",
            )

    def consider(self, offer: CheckpointOffer) -> Accepted | StaleOffer:
        """Return what may be signed, or what this site remembers when the offer does not start there.

        Raises:
            VerificationError: the offer does not hold. If the log is to blame, the evidence is on disk.
        """
        self.require_trusted()
        try:
            line, state, events = consider(
                self._state, offer, log=self._log, key=self._key, name=self._site, clock=self._clock
            )
            self._require_same_history(offer)
        except VerificationError as error:
            if error.code == "log-offer-stale" or (error.code == "log-rolled-back" and self._is_late(offer)):
                return StaleOffer(size=self.size, note=self._state.note if self._state else "")
            self.convict(error, offer)
            raise
        return Accepted(offer=offer, line=line, state=state, events=events)

    def store(self, accepted: Accepted) -> None:
        """Remember, durably, what is about to be signed.

        Raises:
            StorageError: it could not be written; then nothing may be sent.
        """
        write_durably(self._home.witness(self._log), accepted.state.to_bytes())
        self._state, self._late = accepted.state, 0
        self._heads[accepted.state.size] = accepted.state.root
        while len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        for event in accepted.events:
            if isinstance(event, WitnessNonce) and self._nonces.get(event.study) == event.nonce:
                self._asked_at.setdefault(event.study, accepted.state.size)

    def convict(self, error: VerificationError, offer: CheckpointOffer) -> None:
        """Keep what shows that the log is wrong, if `error` says so, and trust it no more."""
        if error.code not in CONVICTING:
            return
        statement = LogEvidence(
            site=self._site,
            log=self._log,
            time=int(self._clock()),
            code=error.code,
            known=self._state.note if self._state else "",
            offered=offer.checkpoint,
            offer=offer.sha256(),
        )
        folder = self._home.evidence(self._log) / f"{statement.time}-{error.code}"
        write_durably(folder / "offer.json", offer.to_bytes())
        envelope = sign_document(statement.to_bytes(), LOG_EVIDENCE_TYPE, self._key)
        write_durably(folder / "statement.json", envelope.to_bytes())
        log.error("evidence against the audit log was kept", folder=str(folder), code=error.code)

    # -- freshness

    def nonce(self, study: str) -> str | None:
        """Return the nonce that must be logged and cosigned before `study` goes on; None when that was seen."""
        if study in self._fresh:
            return None
        return self._nonces.setdefault(study, self._new_nonce())

    def take_quorum(self, study: Study, note: str) -> None:
        """Count `note` for freshness if it is a quorum's, over a tree that this site cosigned after its nonce."""
        digest = study.sha256()
        if not note or digest in self._fresh or digest not in self._asked_at:
            return
        members = {member.name: member.identity for member in study.cohort.members}
        try:
            head = verify_quorum(note, self._log, members, study.cohort.witness_quorum)
        except VerificationError as error:
            log.info("the offered checkpoint has no quorum yet", why=str(error))
            return
        if head.size >= self._asked_at[digest] and self._heads.get(head.size) == head.root:
            self._fresh.add(digest)

    def _require_same_history(self, offer: CheckpointOffer) -> None:
        """What others cosigned at a size that this site cosigned must be the same tree."""
        if not offer.cosigned:
            return
        head = open_checkpoint(offer.cosigned, parse_log_key(self._log))
        if self._heads.get(head.size, head.root) != head.root:
            raise forked(f"others cosigned a different history of {head.size} entries")

    def _is_late(self, offer: CheckpointOffer) -> bool:
        self._late += 1
        return offer.old_size != self.size and self._late <= MAX_LATE_OFFERS


def load_witness(home: Home, log_key: str) -> WitnessState | None:
    """Return what this site cosigned last of the log with this verifier key, None before the first time.

    Raises:
        StorageError: the file is damaged.
    """
    path = home.witness(log_key)
    if not path.exists():
        return None
    try:
        state = WitnessState.from_bytes(path.read_bytes())
    except ProtocolError:
        state = None
    if state is None or state.log != log_key:
        raise StorageError(
            "witness-state-damaged",
            f"{path.name} is damaged or belongs to another log",
            next_step="keep the file for the reviewers; this site must leave the study and abandon its open round",
        )
    return state
