"""Peak memory of the harness and everything it started, by sampling /proc.

Rules. The figure is the largest sum of resident set sizes that was seen; pages that processes share
count once per process, so it is an upper bound. Without /proc there is no figure.

    >>> with PeakMemory(lambda: supervisor.pids) as memory: ...
    >>> memory.peak_bytes
    3221225472
"""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_S = 0.5
"""Models are loaded in seconds, so a peak between two samples is small."""


class PeakMemory:
    """Samples in a thread until it is left.

    Args:
        pids: returns the roots of the process trees to count, beside the harness itself.
        proc: where the proc file system is mounted.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], proc: Path = Path("/proc")) -> None:
        self._pids = pids
        self._proc = proc
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.peak_bytes: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def sample(self) -> None:
        """Take one sample now."""
        total = resident_bytes([os.getpid(), *self._pids()], self._proc)
        if total:
            self.peak_bytes = max(self.peak_bytes or 0, total)

    def _watch(self) -> None:
        while not self._done.is_set():
            self.sample()
            self._done.wait(INTERVAL_S)


def resident_bytes(roots: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Return the summed resident set of `roots` and all their descendants, in bytes (0 without /proc)."""
    parents, resident = _processes(proc)
    wanted, seen = list(roots), set[int]()
    while wanted:
        pid = wanted.pop()
        if pid in seen or pid not in resident:
            continue
        seen.add(pid)
        wanted += [child for child, parent in parents.items() if parent == pid]
    return sum(resident[pid] for pid in seen)


def _processes(proc: Path) -> tuple[dict[int, int], dict[int, int]]:
    """Return (pid -> parent's pid, pid -> resident bytes) of all processes."""
    page = os.sysconf("SC_PAGE_SIZE")
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for folder in proc.glob("[0-9]*"):
        try:
            # The name in parentheses may hold spaces and parentheses itself; fields follow the last one.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        pid = int(folder.name)
        parents[pid], resident[pid] = int(fields[1]), int(fields[21]) * page
    return parents, resident
