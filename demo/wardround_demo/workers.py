"""The harness's own worker processes (`worker`): started, watched and collected.

Rules. A worker's result counts only when its process has ended with exit code 0. While it runs, its
one line of progress is shown.

    >>> workers.start("baselines", "baselines", "--data", folder.data)
    >>> workers.collect("baselines", screen)["base"]
    {'accuracy': 0.387, 'macro_f1': 0.374}
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardround_demo.folder import Folder
from wardround_demo.processes import Child, Supervisor
from wardround_demo.screen import Screen
from wardround_demo.settings import Plan

POLL_S = 0.1


@dataclass(kw_only=True)
class Workers:
    """All workers of one run."""

    folder: Folder
    children: Supervisor
    plan: Plan
    quick: bool
    _running: dict[str, Child] = field(default_factory=dict)

    def start(self, key: str, *task: str | Path, out: Path | None = None) -> None:
        """Start `python -m wardround_demo.worker TASK --out …`. Call it from the main thread.

        Args:
            key: name of the worker, for its log file and `collect`.
            task: sub-command and its arguments.
            out: where the result goes; None: `<work>/<key>.json`.
        """
        options = ["--out", str(out or self._file(key)), "--model", self.plan.model]
        command = [sys.executable, "-m", "wardround_demo.worker", *task, *options, *(["--quick"] if self.quick else [])]
        self._running[key] = self.children.start(f"worker-{key}", command)

    def wait(self, key: str, screen: Screen, out: Path | None = None) -> None:
        """Wait until worker `key` has ended well, showing its progress.

        Raises:
            DemoError: it failed.
        """
        child = self._running[key]
        told = (out or self._file(key)).with_name((out or self._file(key)).name + ".progress")
        while child.process.poll() is None:
            screen.detail(told.read_text(encoding="utf-8") if told.exists() else "")
            time.sleep(POLL_S)
        screen.detail("")
        told.unlink(missing_ok=True)
        if child.process.returncode != 0:
            child.require_running()  # raises with the last line of its log

    def collect(self, key: str, screen: Screen) -> dict[str, Any]:
        """Wait for worker `key` and return its result.

        Raises:
            DemoError: it failed.
        """
        self.wait(key, screen)
        found: dict[str, Any] = json.loads(self._file(key).read_bytes())
        return found

    def _file(self, key: str) -> Path:
        return self.folder.work / f"{key}.json"
