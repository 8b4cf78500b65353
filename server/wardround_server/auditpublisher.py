"""Keeps the tree close behind the journal, and notices a disk that has stopped answering.

Rules. One thread publishes several times a second; the daemon asks `check` at every tick and stops when it raises: no
audit, no round. A publish that hangs keeps only this thread; `check` sees it.

    >>> with Publisher(log) as publisher:  # doctest: +SKIP
    ...     publisher.check()
"""

import threading
from types import TracebackType
from typing import Protocol, Self

from wardround_common.errors import StorageError

PUBLISH_S = 0.25
"""A signed checkpoint costs about ten syncs; this many a second leave the disk to the journal."""


class Log(Protocol):
    """The part of `auditlog.AuditLog` that is needed here."""

    def publish(self) -> None:
        """Put everything durable under a signed checkpoint."""

    def require_alive(self) -> None:
        """Return if no file-system call is taking too long."""


class Publisher:
    """Publishes until it is left or fails."""

    def __init__(self, log: Log, *, every_s: float = PUBLISH_S) -> None:
        self._log, self._every_s = log, every_s
        self._stop = threading.Event()
        self._error: StorageError | None = None
        self._thread = threading.Thread(target=self._run, name="audit-publisher", daemon=True)

    def check(self) -> None:
        """Return if the log is being published.

        Raises:
            StorageError: it could not be, or a file-system call hangs (audit-stalled).
        """
        if self._error is not None:
            raise self._error
        self._log.require_alive()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                self._log.publish()
        except StorageError as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if kind is None:
            self._thread.join()  # after an error it may hang in the disk for ever
