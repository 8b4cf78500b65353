"""What the running server logs about itself, and what people hand in for the log.

Rules.
- At every start: a changed configuration, reviewers that came or went.
- At every tick: a clock that was set, requests that lie in `state/audit-inbox/` (docs/spec/audit.md, "Requests").
- Once a day, if an authority is configured: an RFC 3161 timestamp, asked for by a thread of its own.
- A request that cannot be done is moved to `state/audit-inbox/refused/` and explained in the server's own log.
- An acknowledgement counts only if a study names the reviewer's signing key.
Not done here: the log itself (`auditlog`).

    >>> AuditDesk(audit, office).begin()  # doctest: +SKIP
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from wardround_common.audit.events import (
    ClockJumped,
    ConfigChanged,
    Event,
    LogTimestamped,
    ReviewerAdded,
    ReviewerRemoved,
    SegmentAcknowledged,
)
from wardround_common.audit.requests import (
    ACKNOWLEDGEMENT_TYPE,
    Acknowledgement,
    RewrapRequest,
    ShredRequest,
    open_acknowledgement,
)
from wardround_common.documents import Document, sha256_digest
from wardround_common.errors import ConfigError, StorageError, TransportError, WardroundError
from wardround_common.files import write_durably
from wardround_common.logging import get_logger
from wardround_common.rounds import document_format
from wardround_common.signing import Envelope
from wardround_common.study import Study
from wardround_server import auditstamps
from wardround_server.auditfiles import OsFiles
from wardround_server.auditlog import AuditLog

MAX_CLOCK_DRIFT_S = 30.0
"""Wall clock against monotonic clock between two looks: more is a clock that somebody set."""

log = get_logger("server.audit")


class DeskState(Document):
    """What the desk remembers from one start to the next."""

    format: str = "wardround/audit-desk/1"
    config: str  # digest of server.toml
    reviewers: dict[str, str]  # name -> age recipient
    acknowledged: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # segment -> reviewers


def submit(root: Path, data: bytes) -> Path:
    """Put a request where the running server, or the next one, finds it; return the file.

    Raises:
        ConfigError: not a request.
        StorageError: not written.
    """
    _parse(data)
    path = _inbox(root) / f"{sha256_digest(data)[7:]}.json"
    write_durably(path, data)
    return path


class AuditDesk:
    """See the module's rules.

    Args:
        audit: the open log.
        root: the server's home.
        config: digest of `server.toml`.
        reviewers: who can read, by name.
        identities: returns the signing keys of reviewers, as studies name them: name -> `ed25519:` key.
        concerned: returns the sites that must see an acknowledgement.
        timestamps: posts to a time-stamping authority; None for no timestamps.
        clock: seconds since 1970.
        monotonic: seconds.
    """

    def __init__(
        self,
        audit: AuditLog,
        root: Path,
        *,
        config: str,
        reviewers: dict[str, str],
        identities: Callable[[], dict[str, str]] = dict,
        concerned: Callable[[], frozenset[str]] = frozenset,
        timestamps: auditstamps.Post | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._audit, self._root, self._config, self._reviewers = audit, root, config, reviewers
        self._identities, self._concerned, self._post = identities, concerned, timestamps
        self._clock, self._monotonic = clock, monotonic
        self._offset = clock() - monotonic()
        self._next_stamp = 0.0
        self._acknowledged: dict[str, tuple[str, ...]] = {}

    def begin(self) -> None:
        """Log what changed since the last start.

        Raises:
            StorageError: not logged.
        """
        path = self._root / "state" / "audit-desk.json"
        before = DeskState.from_bytes(path.read_bytes()) if path.exists() else None
        self._acknowledged = dict(before.acknowledged) if before else {}
        now = self._state()
        if before is not None and before != now:
            self._log(_changes(before, now))
        if before != now:
            write_durably(path, now.to_bytes())

    def tick(self) -> None:
        """Log what happened since the last tick.

        Raises:
            StorageError: not logged.
        """
        self._watch_clock()
        for path in sorted(_inbox(self._root).glob("*.json")):
            self._take(path)
        if self._post is not None and self._monotonic() >= self._next_stamp:
            self._next_stamp = self._monotonic() + auditstamps.AGAIN_S
            threading.Thread(target=self.stamp, name="audit-timestamp", daemon=True).start()

    def unacknowledged(self, study: Study) -> str:
        """Return what `study` must wait for: a segment that a reviewer has not acknowledged in time; '' for nothing.

        A reviewer that cannot open what is written must be noticed now, not when the trail is needed.
        """
        hours = study.timing.acknowledge_hours
        names = {reviewer.name for reviewer in study.reviewers if reviewer.identity is not None}
        if not hours or not names:
            return ""
        for segment, opened in self._audit.segment_times().items():
            missing = names - set(self._acknowledged.get(segment, ()))
            if missing and self._clock() - opened > hours * 3_600:
                return f"waiting for {', '.join(sorted(missing))} to acknowledge segment {segment} of the audit trail"
        return ""

    def stamp(self) -> bool:
        """Have the newest checkpoint time-stamped, unless that was done today or nothing is new; return whether it was.

        Failures are logged by the server, never raised: the audit log does not depend on an authority.
        """
        assert self._post is not None
        audit = self._root / "audit"
        size, when = auditstamps.newest_stamp(audit)
        try:
            note = self._audit.cosigned or self._audit.checkpoint
            stamped = int(note.split("\n")[1])
            if stamped <= size or self._clock() - when < auditstamps.EVERY_S:
                return False
            reply = auditstamps.stamp(note, post=self._post)
            auditstamps.keep(OsFiles(), audit, stamped, note, reply)
            self._log([LogTimestamped(size=stamped, token=sha256_digest(reply))])
        except (TransportError, StorageError, OSError) as error:
            log.warning("no timestamp for the audit log", why=str(error))
            return False
        return True

    def _watch_clock(self) -> None:
        offset = self._clock() - self._monotonic()
        jump = offset - self._offset
        if abs(jump) > MAX_CLOCK_DRIFT_S:
            self._offset = offset
            self._log([ClockJumped(seconds=round(jump))])

    def _take(self, path: Path) -> None:
        try:
            self._do(_parse(path.read_bytes()))
        except StorageError:
            raise
        except WardroundError as error:
            log.error("an audit request was refused", file=path.name, why=str(error), next=error.next_step)
            refused = path.parent / "refused"
            refused.mkdir(exist_ok=True)
            path.rename(refused / path.name)
            return
        with suppress(FileNotFoundError):
            path.unlink()

    def _do(self, request: RewrapRequest | ShredRequest | Envelope) -> None:
        if isinstance(request, Envelope):
            self._acknowledge(request)
            return
        if request.log != self._audit.verifier_key:
            raise _unusable("the request is for another log")
        if isinstance(request, RewrapRequest):
            self._audit.rewrap(request.segment, request.wrap, request.record)
        else:
            self._audit.shred(request.segment, request.reason)

    def _acknowledge(self, envelope: Envelope) -> None:
        claimed = Acknowledgement.from_bytes(envelope.payload_bytes())
        identity = self._identities().get(claimed.reviewer)
        if identity is None:
            raise _unusable(f"no study names a signing key of the reviewer {claimed.reviewer}")
        said = open_acknowledgement(envelope, claimed.reviewer, identity, log=self._audit.verifier_key)
        if self._audit.opened_digest(said.segment) != said.opened:
            raise _unusable(f"the acknowledgement is for another segment than {said.segment} of this log")
        event = SegmentAcknowledged(segment=said.segment, reviewer=said.reviewer, envelope=envelope)
        self._audit.append([(event, self._concerned())])
        before = self._acknowledged.get(said.segment, ())
        self._acknowledged[said.segment] = tuple(sorted({*before, said.reviewer}))
        write_durably(self._root / "state" / "audit-desk.json", self._state().to_bytes())

    def _state(self) -> DeskState:
        return DeskState(config=self._config, reviewers=self._reviewers, acknowledged=dict(self._acknowledged))

    def _log(self, events: Sequence[Event]) -> None:
        self._audit.append([(event, frozenset()) for event in events])


def reviewer_identities(studies: Iterable[Study]) -> dict[str, str]:
    """Return the signing keys of reviewers that studies name; one who has two keys acknowledges nothing."""
    found: dict[str, set[str]] = {}
    for study in studies:
        for reviewer in study.reviewers:
            if reviewer.identity is not None:
                found.setdefault(reviewer.name, set()).add(reviewer.identity)
    return {name: next(iter(keys)) for name, keys in found.items() if len(keys) == 1}


def _changes(before: DeskState, now: DeskState) -> list[Event]:
    events: list[Event] = []
    if before.config != now.config:
        events.append(ConfigChanged(before=before.config, after=now.config))
    for name in sorted({*before.reviewers, *now.reviewers}):
        old, new = before.reviewers.get(name), now.reviewers.get(name)
        if old is not None and old != new:
            events.append(ReviewerRemoved(name=name))
        if new is not None and old != new:
            events.append(ReviewerAdded(name=name, recipient=new))
    return events


def _parse(data: bytes) -> RewrapRequest | ShredRequest | Envelope:
    kind = document_format(data)
    if kind == "wardround/rewrap-request/1":
        return RewrapRequest.from_bytes(data)
    if kind == "wardround/shred-request/1":
        return ShredRequest.from_bytes(data)
    envelope = Envelope.from_bytes(data)
    if envelope.payloadType != ACKNOWLEDGEMENT_TYPE:
        raise _unusable("the file is neither a rewrap nor a shred nor an acknowledgement")
    return envelope


def _inbox(root: Path) -> Path:
    return root / "state" / "audit-inbox"


def _unusable(why: str) -> ConfigError:
    return ConfigError(
        "audit-request-refused",
        why,
        next_step="make it again from a fresh copy of this server's audit folder",
    )
