"""What the server is doing, in one small file for `wardround server status` and other local readers.

Rules. Replaced as a whole, never appended to; it holds what the operator may know anyway: study,
round, which sites are connected, working or have answered. Nothing of it is sent.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from wardround_common.documents import Document, Name
from wardround_common.glance import GlanceFile
from wardround_server.rounds.desk import StudyStatus

Phase = Literal["waiting", "running", "completed", "paused", "failed", "aborted", "stopped"]
PHASES: tuple[Phase, ...] = get_args(Phase)
SitePhase = Literal["offline", "idle", "working", "answered"]


class Since(Document):
    """A state, and since when (Unix seconds)."""

    state: SitePhase
    since: float


class StudyView(Document):
    """One running or ended study."""

    phase: Phase
    round: int
    rounds: int
    message: str = ""
    evaluation: str = ""  # the newest figures of an evaluation, in words
    round_began: float  # Unix seconds
    sites: dict[Name, Since] = Field(default_factory=dict)


class ServerStatus(Document):
    """The content of `state/status.json`: the study that moved last, then all of them and every connection."""

    phase: Phase = "waiting"
    study: str | None = None
    round: int = 0
    rounds: int = 0
    members: dict[Name, SitePhase] = Field(default_factory=dict)
    message: str = ""
    updated: float = 0.0  # Unix seconds
    studies: dict[Name, StudyView] = Field(default_factory=dict)
    links: dict[Name, Since] = Field(default_factory=dict)  # idle: connected; offline: since when not


class StatusBoard:
    """Keeps `state/status.json` current. Thread-safe.

    Args:
        path: the file.
        connected: returns the sites with an open session.
        clock: Unix seconds.
    """

    def __init__(
        self, path: Path, *, connected: Callable[[], frozenset[str]], clock: Callable[[], float] = time.time
    ) -> None:
        self._file = GlanceFile(path)
        self._connected = connected
        self._clock = clock
        self._lock = threading.Lock()
        self._status = ServerStatus()
        self._written: ServerStatus | None = None

    def study(self, status: StudyStatus) -> None:
        """Show a study's progress."""
        with self._lock:
            self._status = self._status.model_copy(
                update={
                    "phase": status.phase,
                    "study": status.study,
                    "round": status.round,
                    "rounds": status.rounds,
                    "members": dict(status.sites),
                    "message": status.message,
                    "studies": {**self._status.studies, status.study: self._view(status)},
                }
            )
        self.refresh()

    def _view(self, status: StudyStatus) -> StudyView:
        """Return the study's view; a state that lasts keeps the moment when it began."""
        now, before = self._clock(), self._status.studies.get(status.study)
        same_round = before is not None and before.round == status.round
        old = before.sites if before is not None and same_round else {}
        return StudyView(
            phase=status.phase,
            round=status.round,
            rounds=status.rounds,
            message=status.message,
            evaluation=status.evaluation,
            round_began=before.round_began if before is not None and same_round else now,
            sites={site: _lasting(old.get(site), state, now) for site, state in status.sites.items()},
        )

    def waiting(self, message: str) -> None:
        """Show what the server waits for while no study runs."""
        with self._lock:
            if self._status.phase in ("waiting", "stopped"):
                self._status = self._status.model_copy(update={"phase": "waiting", "message": message})
        self.refresh()

    def aborted(self, study: str, rounds: int) -> None:
        """Show that a study was aborted."""
        with self._lock:
            old = self._status.studies.get(study)
            view = StudyView(
                phase="aborted",
                round=old.round if old else 0,
                rounds=rounds,
                message="aborted",
                round_began=old.round_began if old else self._clock(),
            )
            changes = {"phase": "aborted", "study": study, "message": "aborted", "members": {}}
            self._status = self._status.model_copy(
                update={
                    **changes,
                    "round": view.round,
                    "rounds": rounds,
                    "studies": {**self._status.studies, study: view},
                }
            )
        self.refresh()

    def stopped(self) -> None:
        """Show that the server has stopped in good order."""
        with self._lock:
            phase = self._status.phase if self._status.phase in ("completed", "failed", "aborted") else "stopped"
            self._status = self._status.model_copy(update={"phase": phase})
        self.refresh()

    def refresh(self) -> None:
        """Write the file if anything changed, the sites' connections included."""
        with self._lock:
            connected = self._connected()
            members = {
                site: (state if site in connected else "offline")
                for site, state in {**dict.fromkeys(connected, "idle"), **self._status.members}.items()
            }
            now, seen = self._clock(), set(connected) | set(self._status.links)
            links = {
                site: _lasting(self._status.links.get(site), "idle" if site in connected else "offline", now)
                for site in sorted(seen)
            }
            self._status = self._status.model_copy(update={"links": links})
            new = self._status.model_copy(update={"members": members})
            if new != self._written:
                self._file.write(new.model_copy(update={"updated": self._clock()}).to_bytes())
                self._written = new


def _lasting(old: Since | None, state: SitePhase, now: float) -> Since:
    return old if old is not None and old.state == state else Since(state=state, since=now)


def read_status(path: Path) -> ServerStatus | None:
    """Return the last status, or None if there is none (yet)."""
    try:
        return ServerStatus.model_validate_json(json.dumps(json.loads(path.read_bytes())))
    except (OSError, ValueError):
        return None
