"""Run a command that dies with its parent: `python bound.py PARENT_PID COMMAND...`.

Rules.
- The kernel kills this process when its parent is gone (prctl PR_SET_PDEATHSIG), whatever killed the
  parent; the setting survives the exec. On systems without prctl it is plain exec.
- A parent that died before the setting was made is noticed by its process id.
- Only the standard library, no package import: it runs before every child of the demo.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(arguments: list[str]) -> None:
    """Bind to the parent, then become the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - the command is the harness's own


if __name__ == "__main__":
    main(sys.argv[1:])
