"""Every secret of a federation, as it could appear elsewhere, and where it must not appear."""

import base64
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from peers.federation import Federation

_BODY = re.compile(rb"^[A-Za-z0-9+/=_-]{24,}$", re.MULTILINE)  # lines of PEM and of age identities


def secrets_of(fed: Federation) -> dict[str, set[bytes]]:
    """Return file -> the forms that its secret could take, for every private file below the federation's folder."""
    found = {}
    for path in sorted(fed.folder.rglob("*")):
        if not path.is_file() or path.stat().st_mode & 0o077 or path.suffix not in (".key", ".age"):
            continue
        data = path.read_bytes()
        forms = set(_BODY.findall(data))
        if not forms:  # raw bytes
            forms = {data.strip(), data.hex().encode(), base64.b64encode(data), base64.urlsafe_b64encode(data)}
        found[str(path.relative_to(fed.folder))] = forms
    return found


def said_by(fed: Federation) -> Iterator[tuple[str, bytes]]:
    """Yield (where, what) of the daemons' arguments and environments, and of every log file."""
    for name, process in fed.processes.items():
        for what in ("cmdline", "environ"):
            said = b""
            with contextlib.suppress(PermissionError):  # not dumpable: environ is for root only
                said = Path(f"/proc/{process.pid}/{what}").read_bytes()
            yield f"{what} of {name}", said
    for path in fed.folder.rglob("*.log"):
        yield path.name, path.read_bytes()
