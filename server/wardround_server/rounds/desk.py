"""What a study's rounds need from their surroundings, handed in from one layer out.

Nothing here knows gRPC, files' places or the clock's source; tests pass in-memory ones.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from wardround_common.adapter import AdapterLayout
from wardround_common.audit.events import Event
from wardround_common.rounds import BlobRef, CheckpointOffer
from wardround_common.signing import Envelope
from wardround_common.study import Study

Entry = tuple[Event, frozenset[str]]
"""An event and the names of the sites that must be able to check it."""

SitePhase = Literal["offline", "idle", "working", "answered"]


class Audit(Protocol):
    """The part of the audit log that rounds use (`auditlog.AuditLog`)."""

    def append(self, events: Sequence[Entry]) -> range:
        """Append durably; raises StorageError if nothing was written."""

    @property
    def size(self) -> int:
        """Number of durable entries."""

    def offer(self, study: str, round_: int, site: str, old_size: int, *, size: int | None = None) -> CheckpointOffer:
        """Return what `site` needs to cosign the tree of `size`, or an earlier one if it is far behind."""

    def witnessed(self, site: str) -> int:
        """Return the tree size that `site` last cosigned, 0 for none."""

    def note_seen(self, site: str, size: int, note: str) -> None:
        """Remember what `site` remembers; raises StorageError if this log holds less, or other entries."""

    @property
    def cosigned(self) -> str:
        """The newest checkpoint with a quorum's cosignatures, '' before the first."""

    def add_cosignatures(self, lines: Sequence[str], size: int, *, quorum: int) -> str:
        """Store verified cosignatures over the tree of `size`; return the note (`cosigned` from `quorum` on)."""


class Blobs(Protocol):
    """The part of the blob store that rounds use (`wire.blobstore.FileBlobStore`)."""

    def put(self, data: bytes | Iterable[bytes]) -> BlobRef:
        """Store durably, by digest."""

    def read(self, blob: BlobRef) -> bytes:
        """Return the bytes after checking digest and length."""

    def open(self, blob: BlobRef) -> BinaryIO:
        """Open the file after checking digest and length."""

    def path(self, blob: BlobRef) -> Path:
        """Return the file of a complete blob; raises StorageError."""

    def remove(self, blob: BlobRef) -> None:
        """Forget the bytes, if they are there."""


Unseal = Callable[[Callable[[], BinaryIO], int, str], Callable[[], Iterator[bytes]]]
"""From (function that opens the sealed file, round, site) to a function that yields the plaintext."""


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """What the operator sees of a running study."""

    phase: Literal["waiting", "running", "completed", "paused", "failed"]
    study: str
    round: int
    rounds: int
    message: str = ""
    evaluation: str = ""  # the newest figures of an evaluation, in words
    sites: Mapping[str, SitePhase] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """One study's collaborators.

    Args:
        study: the study, signed by the operator and every member.
        layout: names and shapes of the adapter's tensors.
        nodes: Flower node id of every member, by site name.
        unseal: opens a sealed update for (file, round, site).
        sign: returns the operator's signature over (document, payload type).
        report: takes every change of status.
        stop: set when the server shuts down or the study is aborted.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970, to compare with the sites'.
    """

    study: Study
    layout: AdapterLayout
    nodes: Mapping[str, int]
    audit: Audit
    blobs: Blobs
    unseal: Unseal
    sign: Callable[[bytes, str], Envelope]
    report: Callable[[StudyStatus], None]
    stop: threading.Event
    clock: Callable[[], float]
    sums: Path | None = None  # where masked rounds are kept for reviewers, if the study says `keep_vectors`
    withdrawn: Callable[[], frozenset[str]] = frozenset  # sites that have left the study
    wall_clock: Callable[[], float] = time.time
    hold: Callable[[], str] = str  # why no new round may begin now, '' for nothing
    poll_s: float = 0.02  # how often replies are looked for; our Grid answers from memory

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all members, in the study's order."""
        return tuple(member.name for member in self.study.cohort.members)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the members that have not left the study, in its order."""
        left = self.withdrawn()
        return tuple(site for site in self.sites if site not in left)


class Interrupted(Exception):
    """The server is shutting down; the round stays where it is and resumes at the next start."""
