"""A whole study's audit trail of any size, written by the real log writer, with real signatures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.disks import FastFiles
from peers.studies import Cast, cosigned, make_study

from wardround_common.audit.events import (
    AuthFailed,
    ClientDropped,
    ClientEnrolled,
    ClientInvited,
    Event,
    ModelReleased,
    PrivacySpent,
    ReviewerAdded,
    RoundAggregated,
    RoundFailed,
    RoundStarted,
    ServerStarted,
    ServerStopped,
    StudyApproved,
    StudyCreated,
    UpdateReceived,
    WitnessQuorum,
)
from wardround_common.audit.note import log_key_of, open_checkpoint, sign_cosignature
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.trust import Trust, parse_log_key
from wardround_common.config_text import render_yaml
from wardround_common.documents import sha256_digest
from wardround_common.privacy.mechanism import MECHANISM_TYPE, Evaluation
from wardround_common.rounds import UPDATE_HEADER_TYPE, BlobRef, UpdateHeader
from wardround_common.signing import public_key_text, sign_document
from wardround_common.study import Cohort, Member, Privacy, Reviewer, Study
from wardround_server.auditlog import AuditLog

ORIGIN = "operator.wardround"
START = 1_795_330_800  # 22 November 2026, 07:00 UTC

Drop = Callable[[int, int], str]
"""(round, number of the hospital) -> why it dropped out, '' if it answered."""


def some_drop_out(round_: int, hospital: int) -> str:
    """Return a reason now and then: late ones, a refusal, one that is away for two rounds in twenty."""
    if hospital == 1 and round_ % 20 in (11, 12):
        return "late"
    if (round_ * 7 + hospital * 13) % 211 == 0:
        return "failed-locally"
    return "refused" if hospital == 2 and round_ % 50 == 30 else ""


def all_answer(round_: int, hospital: int) -> str:
    return ""


@dataclass
class BigLog:
    """Where everything lies, and everyone's keys."""

    home: Path
    cast: Cast
    study: Study
    reviewer: pyrage.x25519.Identity
    clock: float = START
    adapter: str = sha256_digest(b"adapter 0")
    lines: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.home / "audit"

    @property
    def trust(self) -> Path:
        return self.home / "trust.yaml"

    @property
    def identity(self) -> Path:
        return self.home / "reviewer.key"

    @property
    def sites(self) -> list[str]:
        return list(self.cast.members)

    def open(self) -> AuditLog:
        return AuditLog.open(
            self.folder,
            log_key=self.cast.log,
            origin=ORIGIN,
            reviewers=self.study.reviewers,
            clock=lambda: self.clock,
            files=FastFiles(),
        )

    def append(self, log: AuditLog, *events: Event, seconds: float = 1.0) -> None:
        self.clock += seconds
        log.append([(event, frozenset()) for event in events])

    def head(self, site: str, *, time: int | None = None) -> str:
        """Return what `site` hands over as its newest head: the folder's checkpoint, cosigned by it alone."""
        note = LogFolder(self.folder).checkpoint()
        checkpoint = open_checkpoint(note, parse_log_key(self.study.server.log))
        line = sign_cosignature(checkpoint, site, self.cast.members[site], int(time or self.clock))
        return note + line + "\n"

    def cosign(self, log: AuditLog) -> None:
        """Let every hospital cosign the newest checkpoint."""
        checkpoint = open_checkpoint(log.checkpoint, parse_log_key(self.study.server.log))
        keys = self.cast.members.items()
        lines = [sign_cosignature(checkpoint, site, key, int(self.clock)) for site, key in keys]
        log.add_cosignatures(lines, log.size)


def make_big_log(
    home: Path,
    *,
    hospitals: int = 4,
    rounds: int = 20,
    drop: Drop = some_drop_out,
    evaluation: Evaluation | None = None,
) -> BigLog:
    """Write a finished study of `rounds` rounds by `hospitals` below `home`; no figures of an `evaluation`."""
    big = _cast(home, hospitals, rounds, evaluation)
    with big.open() as log:
        _prepare(big, log)
        for round_ in range(1, rounds + 1):
            _play(big, log, round_, drop)
        released = ModelReleased(
            study=big.study.sha256(), round=rounds, adapter=big.adapter, provenance=sha256_digest(b"provenance")
        )
        big.append(log, released)
        big.cosign(log)
        big.append(log, ServerStopped())
    return big


def make_unstarted_log(home: Path, *, hospitals: int = 2) -> BigLog:
    """Write a study that everybody approved and that has not begun."""
    big = _cast(home, hospitals, 2)
    with big.open() as log:
        _prepare(big, log)
        big.cosign(log)
    return big


def _cast(home: Path, hospitals: int, rounds: int, evaluation: Evaluation | None = None) -> BigLog:
    home.mkdir(parents=True, exist_ok=True)
    names = [f"hospital-{n:02d}" for n in range(1, hospitals + 1)]
    cast = Cast(members={name: Ed25519PrivateKey.generate() for name in names})
    reviewer = pyrage.x25519.Identity.generate()
    study = make_study(
        cast,
        name="icd-titles",
        log=str(log_key_of(ORIGIN, cast.log.public_key())),
        reviewers=(Reviewer(name="board", recipient=str(reviewer.to_public())),),
        cohort=Cohort(
            members=tuple(Member(name=n, identity=public_key_text(k.public_key())) for n, k in cast.members.items()),
            colluders=0,
            min_cohort=2,
            witness_quorum=hospitals // 2 + 1,
        ),
        privacy=Privacy(
            evaluation=evaluation,
            unit="patient",
            adjacency="add-or-remove-one",
            epsilon=8.0,
            delta=1e-5,
            sample_rate=0.02,
            noise_multiplier=1.1,
            clip_norm=1.0,
            steps_per_round=4,
            rounds=rounds,
            divisor=10.0,
            records_per_unit=2,
        ),
        released_round=rounds,
    )
    big = BigLog(home=home, cast=cast, study=study, reviewer=reviewer)
    big.trust.write_text(render_yaml(Trust.of(study), header="For a test."))
    big.identity.write_text(f"# for a test\n{reviewer}\n")
    return big


def _prepare(big: BigLog, log: AuditLog) -> None:
    digest, study = sha256_digest, big.study
    big.append(log, ServerStarted(version="0.1.0", config=digest(b"config")))
    big.append(log, *(ReviewerAdded(name=r.name, recipient=r.recipient) for r in study.reviewers))
    big.append(log, *(ClientInvited(site=site) for site in big.sites))
    for member in study.cohort.members:
        certificate = digest(member.name.encode())
        big.append(log, ClientEnrolled(site=member.name, identity=member.identity, certificate=certificate))
    big.append(log, AuthFailed(certificate=digest(b"stranger"), reason="unknown-certificate"))
    envelope = cosigned(big.cast, study)
    proposed = envelope.model_copy(update={"signatures": envelope.signatures[:1]})
    big.append(log, StudyCreated(study=study.sha256(), envelope=proposed))
    for site, signature in zip(big.sites, envelope.signatures[1:], strict=True):
        big.append(log, StudyApproved(study=study.sha256(), site=site, signature=signature))


def _play(big: BigLog, log: AuditLog, round_: int, drop: Drop) -> None:
    study = big.study.sha256()
    started = RoundStarted(
        study=study,
        round=round_,
        cohort=tuple(big.sites),
        model=big.study.model.content,
        adapter=big.adapter,
        code="0.1.0",
    )
    big.append(log, started)
    events: list[Event] = []
    survivors = []
    for number, site in enumerate(big.sites):
        reason = drop(round_, number)
        if reason:
            events.append(ClientDropped(study=study, round=round_, site=site, reason=reason))
            continue
        survivors.append(site)
        events += _answer(big, site, round_)
    big.append(log, *events, seconds=45)
    if len(survivors) < big.study.cohort.min_cohort:
        big.append(log, RoundFailed(study=study, round=round_, reason="cohort-too-small"))
    else:
        big.adapter = sha256_digest(f"adapter {round_}".encode())
        big.append(
            log, RoundAggregated(study=study, round=round_, survivors=tuple(sorted(survivors)), adapter=big.adapter)
        )
    quorum = WitnessQuorum(study=study, round=round_, size=log.size, witnesses=tuple(sorted(survivors)))
    big.append(log, quorum)


def _answer(big: BigLog, site: str, round_: int) -> list[Event]:
    study, key = big.study.sha256(), big.cast.members[site]
    header = UpdateHeader(
        study=study,
        round=round_,
        site=site,
        plan=sha256_digest(f"plan {round_}".encode()),
        adapter=big.adapter,
        sealed=BlobRef(digest=sha256_digest(f"{site} {round_}".encode()), length=145_192),
        parameters=35_733,
    )
    record = big.study.mechanism(site, round_)
    return [
        UpdateReceived(
            study=study, round=round_, site=site, header=sign_document(header.to_bytes(), UPDATE_HEADER_TYPE, key)
        ),
        PrivacySpent(
            study=study, round=round_, site=site, record=sign_document(record.to_bytes(), MECHANISM_TYPE, key)
        ),
    ]
