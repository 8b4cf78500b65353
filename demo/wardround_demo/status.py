"""What the daemons say about themselves in their own `state/status.json`; nothing travels for it.

Rules. Reading never fails: a file that is not there yet, half-known or newer than this harness gives
the fields that could be read.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class HospitalStatus:
    """One hospital's daemon."""

    phase: str = "starting"
    round: int = 0
    rounds: int = 0
    step: int = 0
    steps: int = 0
    message: str = ""
    epsilon_spent: float | None = None


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """The aggregation server."""

    phase: str = "starting"
    round: int = 0
    rounds: int = 0
    members: dict[str, str] = field(default_factory=dict)
    message: str = ""


def read_hospital(path: Path) -> HospitalStatus:
    """Return the hospital's last status, or the one before its start."""
    return _read(path, HospitalStatus)


def read_server(path: Path) -> ServerStatus:
    """Return the server's last status, or the one before its start."""
    return _read(path, ServerStatus)


def _read(path: Path, kind: type[S]) -> S:
    try:
        value: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return kind()
    known = {f.name: f.default for f in fields(kind)} if isinstance(value, dict) else {}  # type: ignore[arg-type]
    return kind(**{name: value[name] for name in known if value.get(name) is not None})
