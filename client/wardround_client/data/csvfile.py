"""CSV, one record at a time, for looking at files of any size.

Rules.
- The same rows, line numbers and errors as `text.load_texts`, which trains from CSV (tests/client/data/test_sources.py
  holds the two together); but bytes that are not UTF-8 are a problem of their record, and a row with more fields than
  the header is marked: training drops the surplus, which is a text cut at an unquoted comma.
- After a misplaced quote nothing can be trusted: the last record then is the problem.

    >>> [record.place for record in csv_records(Path("notes.csv"))]  # doctest: +SKIP
    [2, 3]
"""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from wardround_client.data.record import MAX_LINE_BYTES, Record, malformed, not_utf8, open_data
from wardround_client.data.text import MAX_RECORD_CHARACTERS


def csv_records(path: Path) -> Iterator[Record]:
    """Yield the records of a CSV file with a header line; `place` is the line where a record ends.

    Raises:
        DataError: the file cannot be opened.
    """
    csv.field_size_limit(MAX_RECORD_CHARACTERS)
    with open_data(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader, last = csv.DictReader(_lines(text), strict=True), 0
        try:
            if not all(_is_utf8(name) for name in reader.fieldnames or ()):  # also the mark of UTF-16
                yield Record(place=1, row=None, problem=not_utf8(f"{path.name}, line 1"), read=handle.tell())
            for row in reader:
                last = reader.line_num
                yield _record(row, path, last, handle.tell())
        except csv.Error as error:
            why = f"{error}; the last record that could be read ends in line {last}"
            problem = malformed(f"{path.name}, line {reader.line_num}", why)
            yield Record(place=reader.line_num, row=None, problem=problem, read=handle.tell())


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield lines of bounded length: a file without line breaks must not fill the memory."""
    for line in iter(partial(text.readline, MAX_LINE_BYTES), ""):
        if len(line) == MAX_LINE_BYTES:
            raise csv.Error("the line is too long; is this a CSV file?")
        yield line


def _record(row: dict[Any, Any], path: Path, line: int, read: int) -> Record:
    ragged = row.pop(None, None) is not None  # where csv puts fields beyond the header's
    if not all(_is_utf8(value) for value in row.values() if value is not None):
        return Record(place=line, row=None, problem=not_utf8(f"{path.name}, line {line}"), read=read)
    return Record(place=line, row=row, ragged=ragged, read=read)


def _is_utf8(value: str) -> bool:
    """Whether no byte of `value` had to be escaped when it was read."""
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        return False
    return True
