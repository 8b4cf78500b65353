"""What this hospital is doing now, in one small local file for people and `client status`.

Rules. The file is replaced, never appended to; it stays on this machine and is not sent anywhere.
It may lag by `MIN_INTERVAL_S` while a phase goes on; a change of phase is written at once.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from wardround_common.documents import Document
from wardround_common.glance import GlanceFile

MIN_INTERVAL_S = 0.2
"""A step takes longer than this on any machine that trains; more writes would only wear the disk."""

Phase = Literal[
    "starting",
    "connecting",
    "caching",
    "waiting",
    "training",
    "sealing",
    "sending",
    "opening",
    "witnessing",
    "done",
    "paused",
    "failed",
    "aborted",
    "stopped",
]


PHASES: tuple[Phase, ...] = get_args(Phase)

_AWAY: tuple[Phase, ...] = ("connecting", "paused")


class ClientStatus(Document):
    """The content of `state/status.json`."""

    phase: Phase = "starting"
    study: str | None = None
    round: int = 0
    rounds: int = 0
    step: int = 0
    steps: int = 0
    message: str = ""
    epsilon_spent: float | None = None  # of `study`, per unit at this site, at the study's delta
    updated: float = 0.0  # Unix seconds


class StatusBoard:
    """Keeps `state/status.json` current. Thread-safe.

    Args:
        path: the file.
        clock: Unix seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = GlanceFile(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._status = ClientStatus()
        self._written = 0.0
        self._before = ClientStatus()  # while the line is down

    def away(self, phase: Literal["connecting", "paused"], message: str) -> None:
        """Show that there is no line to the server, and why; `back` shows again what was shown before."""
        with self._lock:
            if self._status.phase not in _AWAY:
                self._before = self._status
        self.show(phase=phase, message=message)

    def back(self) -> None:
        """Show that the line is there again; a work that went on meanwhile has said so itself."""
        with self._lock:
            away, before = self._status.phase in _AWAY, self._before
        if away:
            self.show(phase="waiting" if before.phase == "starting" else before.phase, message=before.message)

    def show(self, **changes: Any) -> None:
        """Change the named fields and write the file, at most every `MIN_INTERVAL_S` within a phase."""
        with self._lock:
            now = self._clock()
            new = ClientStatus.model_validate({**self._status.model_dump(), **changes, "updated": now})
            urgent = (new.phase, new.round, new.message) != (
                self._status.phase,
                self._status.round,
                self._status.message,
            )
            self._status = new
            if urgent or now - self._written >= MIN_INTERVAL_S:
                self._file.write(new.to_bytes())
                self._written = now


def read_status(path: Path) -> ClientStatus | None:
    """Return the last status, or None if there is none (yet)."""
    try:
        return ClientStatus.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None
