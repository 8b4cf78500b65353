"""JSON Lines, one object at a time; FHIR NDJSON is read through it too.

Rules.
- One line, one object; empty lines are no records. A line that is not UTF-8 or not an object is a problem of its
  place, and the next line is read all the same.
- A file that was cut off ends in such a line.

    >>> [record.place for record in json_records(Path("notes.jsonl"))]  # doctest: +SKIP
    [1, 2]
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from wardround_client.data.record import MAX_LINE_BYTES, Record, malformed, not_utf8, open_data

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_records(path: Path) -> Iterator[Record]:
    """Yield the records of a JSON Lines file; `place` is the line.

    Raises:
        DataError: the file cannot be opened.
    """
    with open_data(path) as handle:
        for number, line in enumerate(_lines(handle), start=1):
            content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if content.strip():
                yield _record(content, path, number, handle.tell())


def _lines(handle: BinaryIO) -> Iterator[bytes]:
    """Yield lines; one that is too long comes cut, and is then no JSON."""
    for line in iter(partial(handle.readline, MAX_LINE_BYTES), b""):
        yield line
        if len(line) == MAX_LINE_BYTES:
            return


def _record(line: bytes, path: Path, number: int, read: int) -> Record:
    place = f"{path.name}, line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Record(place=number, row=None, problem=not_utf8(place), read=read)
    except (ValueError, RecursionError):
        why = "the line is too long" if len(line) == MAX_LINE_BYTES else _why(line)
        return Record(place=number, row=None, problem=malformed(place, why), read=read)
    if not isinstance(row, dict):
        return Record(place=number, row=None, problem=malformed(place, "not a JSON object"), read=read)
    return Record(place=number, row=row, read=read)


def _why(line: bytes) -> str:
    return "not JSON" if line.endswith(b"\n") else "not JSON; it is the last line: was the file cut off?"
