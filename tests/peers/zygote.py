"""Real processes in milliseconds: a parent that has imported everything forks one child per daemon.

The children are processes of their own, with their own session, files and memory; only the imports are shared. The
parent opens no channel and starts no thread, so that gRPC begins afresh in each child.

    >>> with Zygote() as zygote:
    ...     process = zygote.spawn("peers.lightward:run", {"role": "server", "home": "…"}, log=Path("server.log"))
    ...     process.kill(), process.wait(5)
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Self

PRELOAD = (
    "wardround_client.daemon",
    "wardround_server.app",
    "dp_accounting.pld",
    "scipy.signal",
    "scipy.special",
    "jinja2",
    "peers.lightward",
)


class Zygote:
    """Use as a context manager; leaving it kills what it spawned."""

    def __init__(self, **environment: str) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "peers.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **environment},
            start_new_session=True,
        )
        self._spawned: list[Spawned] = []
        assert self.ask({"op": "ready"}) == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._spawned:
            process.kill()
        self._parent.communicate()

    def spawn(self, target: str, argument: dict[str, Any], *, log: Path) -> "Spawned":
        """Fork a child that calls `target` (`module:function`) with `argument` and exits with what it returns."""
        pid = self.ask({"op": "fork", "target": target, "argument": argument, "log": str(log)})
        self._spawned.append(Spawned(self, pid))
        return self._spawned[-1]

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._parent.stdin
        assert self._parent.stdout
        self._parent.stdin.write(json.dumps(question) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())


class Spawned:
    """One child; the part of `subprocess.Popen` that the tests use."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._zygote = zygote

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.ask({"op": "poll", "pid": self.pid})
        return self.returncode

    def wait(self, timeout: float = 30) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} did not end")
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def main() -> None:
    """Answer one line after the other until standard input ends."""
    for name in PRELOAD:
        importlib.import_module(name)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(_answer(question)), flush=True)


def _answer(question: dict[str, Any]) -> Any:
    if question["op"] == "poll":
        pid, status = os.waitpid(question["pid"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    if question["op"] == "fork":
        pid = os.fork()
        if pid == 0:
            _become(**question)
        return pid
    return "ready"


def _become(op: str, target: str, argument: dict[str, Any], log: str) -> None:
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(old, new)
        os.closerange(3, 64)
        module, _, function = target.partition(":")
        code = getattr(importlib.import_module(module), function)(argument) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
