"""What the server is doing, in one small file for `wardround server status` and other local readers.

Rules. Replaced as a whole, never appended to; it holds what the operator may know anyway: study,
round, which sites are connected, working or have answered. Nothing of it is sent.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from wardround_common.documents import Document, Name
from wardround_server.rounds.desk import StudyStatus


class ServerStatus(Document):
    """The content of `state/status.json`."""

    phase: Literal["waiting", "running", "completed", "paused", "failed", "aborted", "stopped"] = "waiting"
    study: str | None = None
    round: int = 0
    rounds: int = 0
    members: dict[Name, Literal["offline", "idle", "working", "answered"]] = Field(default_factory=dict)
    message: str = ""
    updated: float = 0.0  # Unix seconds


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
        self._path = path
        self._connected = connected
        self._clock = clock
        self._lock = threading.Lock()
        self._status = ServerStatus()
        self._written: ServerStatus | None = None

    def study(self, status: StudyStatus) -> None:
        """Show a study's progress."""
        with self._lock:
            self._status = ServerStatus(
                phase=status.phase,
                study=status.study,
                round=status.round,
                rounds=status.rounds,
                members=dict(status.sites),
                message=status.message,
            )
        self.refresh()

    def waiting(self, message: str) -> None:
        """Show what the server waits for while no study runs."""
        with self._lock:
            if self._status.phase in ("waiting", "stopped"):
                self._status = ServerStatus(message=message)
        self.refresh()

    def aborted(self, study: str, rounds: int) -> None:
        """Show that a study was aborted."""
        with self._lock:
            self._status = ServerStatus(phase="aborted", study=study, rounds=rounds, message="aborted")
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
            new = self._status.model_copy(update={"members": members})
            if new != self._written:
                self._write(new.model_copy(update={"updated": self._clock()}))
                self._written = new

    def _write(self, status: ServerStatus) -> None:
        aside = self._path.with_suffix(".new")
        aside.write_bytes(status.to_bytes())
        os.replace(aside, self._path)


def read_status(path: Path) -> ServerStatus | None:
    """Return the last status, or None if there is none (yet)."""
    try:
        return ServerStatus.model_validate_json(json.dumps(json.loads(path.read_bytes())))
    except (OSError, ValueError):
        return None
