"""Starting and stopping the demo's processes so that nothing outlives it.

Rules.
- Every child is a real OS process in a session of its own: Ctrl-C in the terminal reaches the
  harness only, which then stops the children in order (SIGTERM, wait, SIGKILL).
- A harness that is itself killed takes its children along (`bound`). The kernel ties a child to
  the *thread* that started it, so daemons are started from the main thread only.
- Children get a minimal environment; no secret is ever in an argument or a variable.
- `stop` returns only when no process of any child's session is left.
Not done here: which commands, in which order (`scenario`).

    >>> with Supervisor(logs=Path("out/logs")) as children:
    ...     server = children.start("server", ["wardround", "server", "start", "--home", "S"])
    ...     children.run("invite", ["wardround", "server", "invite", "st-elsewhere", "--home", "S"])
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from wardround_common.errors import WardroundError

T = TypeVar("T")

STOP_S = 15.0
"""Seconds between SIGTERM and SIGKILL: a daemon may have to finish a write and close its log."""

KILL_S = 5.0
"""Seconds that the kernel may take to remove killed processes."""

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""All that children inherit of the environment."""

FIXED = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MALLOC_ARENA_MAX": "2",  # fewer heaps per daemon
    "MALLOC_MMAP_THRESHOLD_": "33554432",  # bytes; fewer page faults per step
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class DemoError(WardroundError):
    """The demo could not go on: a child failed, or a folder cannot be used."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived; like KeyboardInterrupt, no `except Exception` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass(frozen=True, kw_only=True)
class Child:
    """One running process: its name on the screen, its log file and its handle."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def require_running(self) -> None:
        """Return if the process still runs.

        Raises:
            DemoError: it has ended; the text shows the last line of its log.
        """
        if self.process.poll() is not None:
            raise DemoError(
                "demo-process-ended",
                f"{self.name} ended with exit code {self.process.returncode}: {last_line(self.log)}",
                next_step=f"read {self.log}",
            )


class Supervisor:
    """Owns all children of the demo.

    Args:
        logs: folder of the children's log files, one per name.
        environment: what the harness inherited; only `PASSED_ON` of it goes on.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        inherited = os.environ if environment is None else environment
        self.environment = {name: inherited[name] for name in PASSED_ON if name in inherited} | FIXED
        self._children: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of all children that were started and not yet found ended."""
        with self._lock:
            return tuple(child.process.pid for child in self._children if child.process.returncode is None)

    def start(self, name: str, command: Sequence[str | Path]) -> Child:
        """Start a daemon that logs to `<logs>/<name>.log`. Call it from the main thread (see the rules)."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            child = Child(name=name, log=log, process=self._spawn(command, output.fileno(), output.fileno()))
        self._own(child)
        return child

    def run(self, name: str, command: Sequence[str | Path], *, timeout_s: float = 600.0) -> bytes:
        """Run a command to its end and return its stdout; stderr goes to `<logs>/<name>.log`. Thread-safe.

        Raises:
            DemoError: it failed or took longer than `timeout_s` seconds.
        """
        code, output = self.attempt(name, command, timeout_s=timeout_s)
        if code != 0:
            log = self._logs / f"{name}.log"
            raise DemoError(
                "demo-command-failed",
                f"{_shown(command)} ended with exit code {code}: {last_line(log) or _tail(output)}",
                next_step=f"read {log}, or run the command by hand",
            )
        return output

    def attempt(self, name: str, command: Sequence[str | Path], *, timeout_s: float = 600.0) -> tuple[int, bytes]:
        """Run a command to its end and return (exit code, stdout), whatever the code is. Thread-safe.

        Raises:
            DemoError: it took longer than `timeout_s` seconds.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as errors:
            child = Child(name=name, log=log, process=self._spawn(command, subprocess.PIPE, errors.fileno()))
        self._own(child)
        try:
            output, _ = child.process.communicate(timeout=timeout_s)
        except BaseException as error:
            _signal_group(child.process.pid, signal.SIGKILL)
            child.process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise DemoError(
                "demo-command-hangs",
                f"{_shown(command)} did not end within {timeout_s:.0f} s",
                next_step=f"read {log}; is the machine overloaded?",
            ) from None
        return child.process.returncode, output

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run independent `calls` in threads and return their results in order.

        If one fails, or a signal arrives, all children are stopped before the exception goes on: no
        thread is left waiting for its command.
        """
        pool = ThreadPoolExecutor(max_workers=len(calls))
        try:
            return [future.result() for future in [pool.submit(call) for call in calls]]
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def stop(self, *, wait_s: float = STOP_S) -> None:
        """Stop all children, the latest first; return when none of their sessions has a process left."""
        with self._lock:
            self._closed = True
            children = list(reversed(self._children))
        for child in children:
            _signal_group(child.process.pid, signal.SIGTERM, unless_ended=child.process)
        deadline = time.monotonic() + wait_s
        for child in children:
            _wait(child.process, max(0.0, deadline - time.monotonic()))
        for child in children:
            _signal_group(child.process.pid, signal.SIGKILL)  # also what a child left behind in its session
            child.process.wait()
        while self.left() and time.monotonic() < deadline + KILL_S:
            time.sleep(0.02)

    def stop_one(self, child: Child, *, wait_s: float = STOP_S) -> int:
        """Stop `child` in good order and return its exit code (negative: killed by that signal)."""
        _signal_group(child.process.pid, signal.SIGTERM, unless_ended=child.process)
        _wait(child.process, wait_s)
        _signal_group(child.process.pid, signal.SIGKILL)
        return child.process.wait()

    def left(self) -> tuple[int, ...]:
        """Return the ids of children's sessions that still have a process; empty after `stop`."""
        with self._lock:
            return tuple(child.process.pid for child in self._children if _group_alive(child.process.pid))

    def _own(self, child: Child) -> None:
        """Remember `child`; a child that was started while everything is being stopped is stopped too."""
        with self._lock:
            self._children.append(child)
            closed = self._closed
        if closed:
            _signal_group(child.process.pid, signal.SIGKILL)

    def _spawn(self, command: Sequence[str | Path], output: int, errors: int) -> "subprocess.Popen[bytes]":
        bound = Path(__file__).with_name("bound.py")
        return subprocess.Popen(  # noqa: S603 - a fixed list of our own commands, no shell
            [sys.executable, "-I", "-S", bound, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=self.environment,
            start_new_session=True,
        )


def raise_on_signals(signals: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) -> None:
    """Make the first of `signals` raise `Interrupted` in the main thread; later ones are ignored.

    They are ignored because the clean-up that the first one starts is bounded in time and must not
    be cut short.
    """
    wanted = tuple(signals)

    def interrupt(signum: int, frame: object) -> None:
        for other in wanted:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(signum)

    for each in wanted:
        signal.signal(each, interrupt)


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_line(log: Path, limit: int = 65_536) -> str:
    """Return the last line of `log` that says something, or an empty text."""
    try:
        with log.open("rb") as source:
            source.seek(max(0, log.stat().st_size - limit))
            return _tail(source.read())
    except OSError:
        return ""


def _tail(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join([Path(command[0]).name, *map(str, command[1:])])


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return  # SIGKILL follows


def _signal_group(group: int, signum: signal.Signals, *, unless_ended: "subprocess.Popen[bytes] | None" = None) -> None:
    if unless_ended is not None and unless_ended.poll() is not None:
        return
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return  # nobody left; macOS answers EPERM for a group of zombies


def _group_alive(group: int) -> bool:
    """Return whether a process of `group` still runs; ended ones that nobody has reaped yet do not count."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    found = [_stat(folder) for folder in Path("/proc").glob("[0-9]*")]
    return not found or any(state not in ("Z", "X") for state, pgrp in filter(None, found) if pgrp == group)


def _stat(folder: Path) -> tuple[str, int] | None:
    """Return (state, process group) from a /proc folder, or None for a process that is gone."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[2])
