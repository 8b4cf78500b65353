"""Preflight checks whose report can be pasted into a ticket without leaking anything.

Rules.
- A finding is a name, ok, warn or FAIL, and a text from this program: no path, address, name of a site,
  data set, column or person, no key, no count of records, no text of an error; an error shows as its code.
- Numbers are coarse (days, GiB, a power of two), so that reports of two days do not differ by accident.
- A check that itself fails is a finding, not a crash.
Not done here: what to check (each role's `doctor`).

    >>> examine([("clock", lambda: ok("set"))])[0].state
    'ok'
"""

import ctypes
import ctypes.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509

from wardround_common import __version__
from wardround_common.errors import WardroundError

State = Literal["ok", "warn", "FAIL"]
GIB = 1 << 30
DAY_S = 86_400.0

FEW_DAYS = 30.0
"""A certificate that ends sooner than this, and was not renewed by itself, needs a person."""

LITTLE_DISK = GIB
"""Below this a large adapter, its sealed copy and a partial transfer no longer fit together."""

_TIME_ERROR = 5  # adjtimex: the kernel's clock is not synchronised


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    says: str
    do: str = ""


Result = tuple[State, str, str]
Check = tuple[str, Callable[[], Result]]


def ok(says: str) -> Result:
    """Return a result: nothing to do."""
    return "ok", says, ""


def warn(says: str, do: str) -> Result:
    """Return a result: it works, for now."""
    return "warn", says, do


def fail(says: str, do: str) -> Result:
    """Return a result: it does not work."""
    return "FAIL", says, do


def examine(checks: Iterable[Check]) -> tuple[Finding, ...]:
    """Run all checks in order; what one raises is its finding, by code or kind only."""
    findings = []
    for name, check in checks:
        try:
            state, says, do = check()
        except WardroundError as error:
            state, says, do = fail(f"error {error.code}", "docs/errors.md says what to do")
        except Exception as error:  # a report must not die of the machine that it describes
            state, says, do = fail(f"could not be checked ({type(error).__name__})", "run the command that it is about")
        findings.append(Finding(name=name, state=state, says=says, do=do))
    return tuple(findings)


def healthy(findings: Sequence[Finding]) -> bool:
    """Return whether nothing failed."""
    return all(finding.state != "FAIL" for finding in findings)


def software() -> Result:
    """Say which versions run here."""
    python = ".".join(map(str, sys.version_info[:3]))
    return ok(f"wardround {__version__}, Python {python}, {platform.system()} on {platform.machine()}")


def clock() -> Result:
    """Say whether the kernel regards its clock as synchronised (Linux's adjtimex)."""
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if not hasattr(library, "adjtimex"):
        return warn("cannot be asked on this system", "compare it with a telephone's clock")
    buffer = ctypes.create_string_buffer(256)  # struct timex has 208 bytes; modes = 0 only reads
    state = library.adjtimex(buffer)
    if state in (-1, _TIME_ERROR):
        return warn("no time service keeps it", "switch on NTP; certificates and deadlines need the right time")
    return ok("kept by a time service")


def disk(folder: Path) -> Result:
    """Say how much space is left, as a power of two in GiB."""
    free = shutil.disk_usage(folder).free
    if free < LITTLE_DISK:
        return fail("less than 1 GiB is free", "free space: nothing can be stored or sent soon")
    return ok(f"at least {1 << (free // GIB).bit_length() - 1} GiB are free")


def memory() -> Result:
    """Say how much memory can still be had, as a power of two in GiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    if kib < 2 << 20:
        return warn("less than 2 GiB can be had", "set runtime.micro_batch_tokens lower, or use another machine")
    return ok(f"at least {1 << (kib >> 20).bit_length() - 1} GiB can be had, {os.cpu_count()} processors")


def certificate_life(certificate: x509.Certificate, now: float, *, due_days: float = FEW_DAYS) -> Result:
    """Say how many days `certificate` is still good for, from `now` (Unix seconds)."""
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now < begin:
        return fail("not valid yet", "this machine's clock is behind: set it")
    if now > end:
        return fail("has expired", "ask the operator for a new invite, and enrol again with --again")
    days = int((end - now) / DAY_S)
    if days < due_days:
        return warn(f"{days} days left", "it renews by itself while the program runs and the other side is reachable")
    return ok(f"{days} days left")
