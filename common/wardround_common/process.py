"""What a process that holds keys tells the kernel about itself, and gives back to it.

Rules.
- No `wardround` process leaves a core file or can be dumped by a crash handler, and other processes of the
  same user cannot read its memory (prctl PR_SET_DUMPABLE, Linux; elsewhere the core limit alone).
Not done here: swap. A machine that holds patients' records has encrypted swap or none.

    >>> forbid_core_dumps()
"""

import contextlib
import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def give_back_memory() -> None:
    """Return freed memory to the system: after a rare peak, glibc keeps what fits between what is still in use."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a libc without it has its own way
            ctypes.CDLL(None).malloc_trim(0)


def forbid_core_dumps() -> None:
    """Forbid core files of this process and of those that it forks; one that it executes decides for itself."""
    with contextlib.suppress(ValueError, OSError):  # a limit that is lower already
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # A kernel that pipes core files to a crash handler ignores the limit; this it does not ignore.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
