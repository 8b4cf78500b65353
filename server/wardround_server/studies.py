"""The operator's studies on disk: proposing, offering to members, collecting signatures.

Rules.
- A study's text never changes after `propose`; only signatures are added to its envelope.
- A member is offered the studies that name its identity, after the proposal stands in the audit log.
- A stored study that no longer verifies is offered to nobody and run by nobody; the others are.
- A co-signature counts only if it is the caller's own, over exactly the stored bytes; it is durable
  and queued for the audit log before the call is answered.
- An event is queued before the file that it speaks of is written: a crash between the two leaves an
  event that is queued again on the next try, never a study or signature that the log does not know.
- Signatures are added one at a time (one shelf per process, one serving process per home): members
  that approve in the same moment are all kept.
- A file is read every time and verified when its bytes are not those that verified before.
Not done here: whether the members of a study are enrolled (propose checks that), transport.
"""

import threading
from dataclasses import dataclass, field

from wardround_common.audit.events import StudyApproved, StudyCreated
from wardround_common.errors import ConfigError, ProtocolError, VerificationError, WardroundError
from wardround_common.files import write_durably
from wardround_common.signing import Envelope, Signature, fingerprint, open_envelope, parse_public_key
from wardround_common.study import STUDY_TYPE, Study, open_proposed
from wardround_common.wire.failures import study_unknown
from wardround_server.enrolment import Registry
from wardround_server.home import Home


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A study with the signatures collected so far."""

    study: Study
    envelope: Envelope

    def signed_by(self, identity: str) -> bool:
        """Whether `identity`'s signature was collected (they are verified when they arrive)."""
        return any(signature.keyid == fingerprint(identity) for signature in self.envelope.signatures)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the members that have not co-signed."""
        return tuple(member.name for member in self.study.cohort.members if not self.signed_by(member.identity))


@dataclass(frozen=True, kw_only=True)
class StudyShelf:
    """All studies of one server.

    Args:
        home: where they lie.
        registry: members and the outbox of audit events.
        operator: this server's public identity.
    """

    home: Home
    registry: Registry
    operator: str
    _adding: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _verified: dict[str, tuple[bytes, Proposal]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def require_new(self, name: str) -> None:
        """Return if no study is called `name`.

        Raises:
            ConfigError: there is one; a signed study never changes.
        """
        if self.home.study(name).exists():
            raise ConfigError(
                "study-exists",
                f"a study called {name} was proposed before",
                next_step="choose another name in study.yaml: a signed study never changes",
            )

    def add(self, proposal: Proposal) -> None:
        """Store a new study durably and queue its audit event.

        Raises:
            StorageError: it could not be written.
        """
        event = StudyCreated(study=proposal.study.sha256(), envelope=proposal.envelope)
        self.registry.queue_event(event, {member.name for member in proposal.study.cohort.members})
        write_durably(self.home.study(proposal.study.name), proposal.envelope.to_bytes())

    def unlogged(self) -> frozenset[str]:
        """Return the digests of the studies that have events which are not in the audit log yet."""
        queued = (item.event for item in self.registry.take_events())
        return frozenset(e.study for e in queued if isinstance(e, StudyCreated | StudyApproved))

    def _unlogged_proposals(self) -> frozenset[str]:
        queued = (item.event for item in self.registry.take_events())
        return frozenset(e.study for e in queued if isinstance(e, StudyCreated))

    def all(self) -> tuple[Proposal, ...]:
        """Return all studies that verify, by name."""
        return tuple(found for found in self.read().values() if isinstance(found, Proposal))

    def get(self, reference: str) -> Proposal:
        """Return the study with this name or digest.

        Raises:
            ConfigError: there is none.
            VerificationError, ProtocolError: the study of this name does not verify, or is no document any more.
        """
        for name, found in self.read().items():
            if isinstance(found, Proposal) and reference in (name, found.study.sha256()):
                return found
            if isinstance(found, WardroundError) and reference == name:
                raise found
        raise study_unknown(f"no study called {reference}")

    def read(self) -> dict[str, Proposal | WardroundError]:
        """Return every stored study by name, or why it does not verify: somebody changed its file, or writes to it."""
        found: dict[str, Proposal | WardroundError] = {}
        for name in self.home.study_names():
            try:
                found[name] = self._proposal(name)
            except (VerificationError, ProtocolError) as error:
                found[name] = error
        return found

    def _proposal(self, name: str) -> Proposal:
        """Return the stored study; verifying costs milliseconds, and the server looks at all of them twice a second."""
        data = self.home.study(name).read_bytes()
        before, proposal = self._verified.get(name, (b"", None))
        if proposal is None or before != data:
            envelope = Envelope.from_bytes(data)
            proposal = Proposal(study=open_proposed(envelope, self.operator), envelope=envelope)
            self._verified[name] = (data, proposal)
        return proposal

    # -- what members ask (any other name or digest does not exist for them)

    def list_for(self, site: str) -> list[str]:
        """Return the digests of the studies that name `site` with its enrolled identity."""
        identity, unlogged = self._identity(site), self._unlogged_proposals()
        mine = [p.study.sha256() for p in self.all() if _names(p.study, site, identity)]
        return [digest for digest in mine if digest not in unlogged]

    def envelope_for(self, site: str, reference: str) -> bytes:
        """Return a study's envelope.

        Raises:
            ConfigError: no such study concerns `site`.
        """
        return self._concerning(site, reference).envelope.to_bytes()

    def cosign(self, site: str, data: bytes) -> bytes:
        """Add `site`'s signature to its study and return the envelope.

        Raises:
            VerificationError: not the stored study, or not signed by `site`.
        """
        offered = Envelope.from_bytes(data)
        study = Study.from_bytes(offered.payload_bytes())
        identity = self._concerning(site, study.sha256()).study.member(site).identity
        open_envelope(offered, STUDY_TYPE, [parse_public_key(identity)])
        signature = next(s for s in offered.signatures if s.keyid == fingerprint(identity))
        with self._adding:
            return self._add_signature(self.get(study.sha256()), site, signature).to_bytes()

    def _add_signature(self, stored: Proposal, site: str, signature: Signature) -> Envelope:
        if stored.signed_by(stored.study.member(site).identity):
            return stored.envelope
        event = StudyApproved(study=stored.study.sha256(), site=site, signature=signature)
        self.registry.queue_event(event, {member.name for member in stored.study.cohort.members})
        envelope = stored.envelope.model_copy(update={"signatures": (*stored.envelope.signatures, signature)})
        write_durably(self.home.study(stored.study.name), envelope.to_bytes())
        return envelope

    def _concerning(self, site: str, reference: str) -> Proposal:
        proposal = self.get(reference)
        mine = _names(proposal.study, site, self._identity(site))
        if not mine or proposal.study.sha256() in self._unlogged_proposals():
            raise study_unknown(f"no study called {reference}")
        return proposal

    def _identity(self, site: str) -> str:
        member = self.registry.members().get(site)
        if member is None:
            raise VerificationError(
                "site-not-enrolled", f"{site} is not enrolled here", next_step="run: wardround client enroll INVITE"
            )
        return member.identity


def _names(study: Study, site: str, identity: str) -> bool:
    return any(member.name == site and member.identity == identity for member in study.cohort.members)
