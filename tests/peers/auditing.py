"""An audit log with an operator, three hospitals and a reviewer, for tests on both sides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.events import Event, RoundStarted, ServerStarted, UpdateReceived
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.trust import Trust
from wardround_common.audit.verify import LastSeen, LogReport, verify_log
from wardround_common.audit.witness import WitnessState, consider, verify_cosignature
from wardround_common.documents import canonical_json
from wardround_common.signing import public_key_text, sign_document
from wardround_common.study import Reviewer
from wardround_server.auditlog import AuditLog

STUDY = "sha256:" + "5" * 64
DIGEST = "sha256:" + "0" * 64
ORIGIN = "operator.wardround"
SITES = ("northside", "riverside", "st-elsewhere")
NOW = 1_795_330_800  # 22 November 2026, 07:00 UTC


class Clock:
    """A clock that tests turn by hand."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Scene:
    """Keys of everyone and the folder of the log."""

    home: Path
    log_key: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    reviewer: pyrage.x25519.Identity = field(default_factory=pyrage.x25519.Identity.generate)
    sites: Mapping[str, Ed25519PrivateKey] = field(
        default_factory=lambda: {
            site: Ed25519PrivateKey.from_private_bytes(bytes([n + 1]) * 32) for n, site in enumerate(SITES)
        }
    )
    states: dict[str, WitnessState | None] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    @property
    def folder(self) -> Path:
        return self.home / "audit"

    @property
    def reviewers(self) -> list[Reviewer]:
        return [Reviewer(name="auditor", recipient=str(self.reviewer.to_public()))]

    def open(self, **changes) -> AuditLog:
        options = {"log_key": self.log_key, "origin": ORIGIN, "reviewers": self.reviewers, "clock": self.clock}
        return AuditLog.open(self.folder, **(options | changes))

    def trust(self, quorum: int = 2) -> Trust:
        from wardround_common.audit.note import log_key_of

        return Trust(
            log=str(log_key_of(ORIGIN, self.log_key.public_key())),
            operator=public_key_text(self.log_key.public_key()),
            members={site: public_key_text(key.public_key()) for site, key in self.sites.items()},
            quorum=quorum,
        )

    def consider(self, site: str, log: AuditLog) -> tuple[str, WitnessState, tuple[Event, ...]]:
        """Let `site` consider the log's offer, without remembering the result."""
        state = self.states.get(site)
        offer = log.offer(STUDY, 1, site, state.size if state else 0)
        key = self.sites[site]
        return consider(state, offer, log=log.verifier_key, key=key, name=site, clock=self.clock)

    def cosign(self, log: AuditLog, sites: tuple[str, ...] = SITES) -> dict[str, tuple[Event, ...]]:
        """Let `sites` cosign the newest checkpoint; return what each was shown."""
        shown, lines = {}, []
        for site in sites:
            line, state, shown[site] = self.consider(site, log)
            verify_cosignature(line, state.note, site, public_key_text(self.sites[site].public_key()))
            self.states[site] = state
            lines.append(line)
        log.add_cosignatures(lines, log.size)
        return shown

    def verify(self, last_seen: LastSeen | None = None, *, quorum: int = 2) -> LogReport:
        return verify_log(LogFolder(self.folder), self.trust(quorum), last_seen)


def started() -> tuple[Event, frozenset[str]]:
    """An event that concerns no site."""
    return ServerStarted(version="0.1.0", config=DIGEST), frozenset()


def round_started(round_: int) -> tuple[Event, frozenset[str]]:
    """An event that concerns every site."""
    event = RoundStarted(study=STUDY, round=round_, cohort=SITES, model=DIGEST, adapter=DIGEST, code="0.1.0")
    return event, frozenset(SITES)


def update_received(site: str, key: Ed25519PrivateKey, round_: int) -> tuple[Event, frozenset[str]]:
    """An event that concerns one site and carries its signature."""
    header = sign_document(canonical_json({"round": round_}), "application/vnd.wardround.update-header+json", key)
    return UpdateReceived(study=STUDY, round=round_, site=site, header=header), frozenset({site})


def play_round(scene: Scene, log: AuditLog, round_: int) -> None:
    """Append one round's events, without cosigning."""
    log.append([round_started(round_)])
    log.append([update_received(site, key, round_) for site, key in scene.sites.items()])
