"""Reads docs/retention.md, so that tests can compare it with what is on disk."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "retention.md"


def patterns(side: str) -> tuple[str, ...]:
    """Return the globs of one side's table ("Hospital" or "Server")."""
    section = PAGE.read_text().split(f"\n## {side}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return tuple(pattern for cell in cells for pattern in re.findall(r"`([^`]+)`", cell))


def undescribed(home: Path, side: str, *, besides: Iterable[str] = ()) -> list[str]:
    """Return the files below `home` that no row describes."""
    known = (*patterns(side), *besides)
    names = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in known))


def overlapping(side: str) -> list[str]:
    """Return patterns that stand in more than one row."""
    found = patterns(side)
    return sorted({pattern for pattern in found if found.count(pattern) > 1})
