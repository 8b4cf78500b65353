"""Recorded rows: the arms that take too long for every demo, measured once and shipped.

Rules.
- A row is shown only beside data with the digest it was measured on, and only while the code that
  made it and its arm's own tuning are unchanged (`code_digest`). Anything else is `stale` and has no numbers: the
  table says how to compute it again.
- A row carries the command, date, seed, commit and machine that made it.
- The file is written by `./run demo --all-arms --record` and by nothing else.

    >>> [row.arm for row in load()]
    ['local-trauma', ...]
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import wardround_client
import wardround_common
from wardround_common.errors import DataError
from wardround_demo import tuned
from wardround_demo.results import Provenance, Row

FILE = Path(__file__).with_name("recorded.json")

FORMAT = "wardround/demo-recorded/1"

SOURCES = (
    "demo/arms.py",
    "demo/chapters.py",
    "demo/dataset.py",
    "demo/icd.py",
    "demo/settings.py",
    "client/data/text.py",
    "client/training/*.py",
    "common/adapter.py",
)
"""What a recorded row's numbers follow from, beside the data and its arm's tuned choice. Files are named by role, not
by place."""

COMMAND = "./run demo --all-arms --record"


def load(path: Path = FILE) -> tuple[Row, ...]:
    """Return the recorded rows.

    Raises:
        DataError: the file is missing or malformed.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}")
        return tuple(Row.model_validate(row) for row in document["rows"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            "demo-recorded-unreadable",
            f"{path.name} cannot be read: {reason}",
            next_step=f"restore the file, or write it again with {COMMAND}",
        ) from None


def save(rows: Sequence[Row], path: Path = FILE) -> None:
    """Replace the recorded rows of these rows' data by `rows`; rows of other data (other seeds) stay."""
    digests = {row.provenance.data_digest for row in rows if row.provenance}
    others = [row for row in (load(path) if path.exists() else ()) if _data_of(row) not in digests]
    document = {"format": FORMAT, "rows": [row.model_dump(exclude_none=True) for row in (*others, *rows)]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def choose(arm: str, title: str, rows: Sequence[Row], *, data: str, code: str) -> Row:
    """Return the recorded row of `arm` if it fits, else a row without numbers that says why.

    Args:
        arm: the arm's name.
        title: how the table calls it now.
        rows: all recorded rows.
        data: digest of the data at hand.
        code: digest of the arm's code at hand.
    """
    mine = [row for row in rows if row.arm == arm and row.provenance is not None]
    for row in mine:
        if (_data_of(row), row.provenance.code_digest if row.provenance else "") == (data, code):
            return row.model_copy(update={"source": "recorded", "title": title})
    return Row(arm=arm, title=title, source="stale" if any(_data_of(row) == data for row in mine) else "not run")


def provenance(arm: str, *, seed: int, data: str, command: str = COMMAND) -> Provenance:
    """Return where, when and from what the row of `arm` is being computed now."""
    return Provenance(
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        seed=seed,
        commit=_commit(),
        data_digest=data,
        code_digest=code_digest(arm),
        machine=f"{platform.system()} {platform.machine()}, {_cores()} cores",
    )


def code_digest(arm: str, roots: dict[str, Path] | None = None) -> str:
    """Return the digest over names and contents of `SOURCES`, and over what validation chose for `arm`.

    Args:
        arm: the arm's name; one that was never tuned runs at the plan's own rates, which stand in the sources.
        roots: folder of each role's package; None takes the installed ones.
    """
    where = roots or {
        "demo": Path(__file__).parent,
        "client": Path(str(wardround_client.__file__)).parent,
        "common": Path(str(wardround_common.__file__)).parent,
    }
    total = hashlib.sha256()
    for pattern in SOURCES:
        role, _, rest = pattern.partition("/")
        for path in sorted(where[role].glob(rest)):
            name = f"{role}/{path.relative_to(where[role]).as_posix()}"
            total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    choice = tuned.read(where["demo"] / tuned.FILE.name)["arms"].get(arm, {}).get("choice")
    total.update(f"tuned {json.dumps(choice, sort_keys=True)}\n".encode())
    return "sha256:" + total.hexdigest()


def _data_of(row: Row) -> str:
    return row.provenance.data_digest if row.provenance else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str:
    """Return the checkout's commit, with a plus sign if files differ from it; `unknown` outside git."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short=10", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(where: Path, *arguments: str) -> str:
    done: Any = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        ["git", "-C", str(where), *arguments],  # noqa: S607 - whatever git the user has
        capture_output=True,
        check=True,
        timeout=10,
        text=True,
    )
    return str(done.stdout).strip()
