"""A process that holds keys leaves no core file when it crashes."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CRASH = "import os\n{before}\nos.kill(os.getpid(), 6)\n"
FORBID = "from wardround_common.process import forbid_core_dumps; forbid_core_dumps()"


def _dumps(before: str, folder: Path) -> bool:
    """Run a crashing process that may dump as much as it likes; return whether the kernel dumped it."""

    def unlimited() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    child = subprocess.Popen([sys.executable, "-c", CRASH.format(before=before)], cwd=folder, preexec_fn=unlimited)
    _, status = os.waitpid(child.pid, 0)
    child.returncode = 0  # it was waited for
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status) or any(folder.iterdir())


def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    for name in ("control", "product"):
        (tmp_path / name).mkdir()
    if not _dumps("", tmp_path / "control"):
        pytest.skip("this machine dumps no core at all")
    assert not _dumps(FORBID, tmp_path / "product")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")
def test_the_command_line_is_not_dumpable() -> None:
    asks = (
        "import ctypes, wardround_common.cli as cli; cli.run = lambda *a, **k: ctypes.CDLL(None).prctl(3); cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", asks], check=False).returncode == 0
    without = "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(3))"
    assert subprocess.run([sys.executable, "-c", without], check=False).returncode == 1
