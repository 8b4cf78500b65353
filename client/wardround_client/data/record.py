"""One record of a hospital's file as a reader gives it, and what readers have in common.

Rules.
- A reader goes through its file once and keeps nothing: memory does not grow with the file.
- A problem is a value of the record, so that one pass can count all of them; whoever trains raises the first.
- A record without a row could not even be read: then the file is damaged, and no row after it may be trusted.
- Neither a problem nor a repr ever holds a note's text or an identifier.
Not done here: the formats (`csvfile`, `jsonl`, `parquet`, `fhir`), what a row must hold (`text`).

    >>> Record(place=3, row={"text": "…"}).problem is None
    True
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from wardround_common.errors import DataError

MAX_LINE_BYTES = 64 << 20
"""One line of a file: far beyond a note with a scanned attachment beside it. Bounds a reader's memory."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class Record:
    """One record, with the place at which a person finds it."""

    place: int  # line of the file, or row of a table; the first is 1
    row: Row | None  # None: it could not be read
    problem: DataError | None = None  # why it cannot be trained
    ragged: bool = False  # more fields than the header: an unquoted comma has cut a text
    left_out: bool = False  # its system says that it was entered in error: never trained, no problem either
    read: int = 0  # bytes of the file that were read up to here, for a progress bar


def open_data(path: Path) -> BinaryIO:
    """Open `path` for reading bytes.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            "data-missing",
            f"cannot read {path}: {error.strerror}",
            next_step="correct the data set's path in client.toml, or the file's permissions",
        ) from None


def malformed(place: str, why: str) -> DataError:
    """Return the error for something at `place` ("notes.jsonl, line 3") that is no record."""
    return DataError("data-malformed", f"{place}: {why}", next_step="repair it there, or export the cohort again")


def not_utf8(place: str) -> DataError:
    """Return the error for bytes at `place` that are not UTF-8."""
    return DataError(
        "data-not-utf8",
        f"{place}: it is not UTF-8",
        next_step="convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8",
    )
