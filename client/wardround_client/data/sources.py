"""A hospital's file in any format that wardround reads: one way in for training, one for looking at it.

Rules.
- The ending says the format: `.csv`, `.jsonl`, `.parquet`, and `.ndjson` for FHIR.
- The same records give the same training set whatever the format (tests/client/data/test_sources.py).
- Checks and silence are those of `text`: `strict` where a person decides; during rounds a record that cannot be used
  keeps its place and contributes zero. A file that cannot be read is an error in both.
- CSV and JSON Lines are trained from as `text` reads them, whole; `records` goes through any file of any size.
Not done here: looking at what was read (`check`), whose records they are (`cohort`).

    >>> load_records(Path("notes.parquet"), study.task, unit_column="patient").unit_count  # doctest: +SKIP
    412
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np

from wardround_client.data.csvfile import csv_records
from wardround_client.data.fhir import PATIENT, fhir_records
from wardround_client.data.jsonl import json_records
from wardround_client.data.parquet import parquet_records
from wardround_client.data.record import Record

# The rules for one value are text.py's own: that file stays as it is, because recorded results name its digest.
from wardround_client.data.text import TextData, _labels, _owner, _value, load_texts
from wardround_common.errors import DataError
from wardround_common.study import Task


class Format(StrEnum):
    """What a file holds; the value is its name's ending."""

    CSV = ".csv"
    JSON_LINES = ".jsonl"
    PARQUET = ".parquet"
    FHIR = ".ndjson"


def format_of(path: Path) -> Format:
    """Return the format of `path` by its ending.

    Raises:
        DataError: no known ending.
    """
    try:
        return Format(path.suffix.lower())
    except ValueError:
        raise DataError(
            "data-unknown-format",
            f"{path.name} is neither .csv, .jsonl, .parquet nor .ndjson (FHIR)",
            next_step="export the cohort as CSV with a header line, as JSON Lines, Parquet or FHIR NDJSON",
        ) from None


def unit_column_of(path: Path, configured: str | None) -> str | None:
    """Return the column that says whose a record is: FHIR has one by construction."""
    return PATIENT if configured is None and format_of(path) is Format.FHIR else configured


def place_of(path: Path, place: int) -> str:
    """Return "notes.parquet, row 3", or "line 3" where a person would look for a line."""
    return f"{path.name}, {'row' if format_of(path) is Format.PARQUET else 'line'} {place}"


def records(path: Path, columns: Sequence[str], *, unit_column: str | None = None) -> Iterator[Record]:
    """Yield every record of a file, in constant memory.

    Args:
        path: a file of any `Format`.
        columns: those that will be looked at; other formats than Parquet yield all that there are.
        unit_column: which of them holds identifiers.

    Raises:
        ConfigError: the format's library is not installed.
        DataError: unknown format, the file cannot be opened, or a column has another type.
    """
    match format_of(path):
        case Format.CSV:
            return csv_records(path)
        case Format.JSON_LINES:
            return json_records(path)
        case Format.PARQUET:
            return parquet_records(path, columns, unit_column=unit_column)
        case Format.FHIR:
            return fhir_records(path)


def load_records(path: Path, task: Task, *, unit_column: str | None = None, strict: bool = True) -> TextData:
    """Read and check a hospital's file; as `text.load_texts`, for every format.

    Args:
        path: a file of any `Format`.
        task: names the file's columns and, for classification, all labels.
        unit_column: column that identifies the patient; None makes every record its own unit.
        strict: raise for an unusable record instead of keeping it as one that contributes zero.

    Raises:
        ConfigError: the format's library is not installed.
        DataError: the file cannot be read, or (if strict) a record cannot be used.
    """
    if format_of(path) in (Format.CSV, Format.JSON_LINES):
        return load_texts(path, task, unit_column=unit_column, strict=strict)
    texts, targets, owners = [], [], []
    for record in _trained(path, task, unit_column, strict=strict):
        row, place = record.row or {}, place_of(path, record.place)
        text, target = (_value(row, column, place, strict) for column in (task.text_column, task.label_column))
        owner = _owner(row, unit_column, place, strict) if unit_column else ""
        owned = unit_column is None or owner != ""
        texts.append(text if owned else "")  # whose record it is, is unknown: it must not count for anyone
        targets.append(target)
        owners.append(f"{owner}/{'' if owned else record.place}")
    if not texts:
        raise DataError(
            "data-empty", f"{path.name} holds no records", next_step="export the cohort again, or set another file"
        )
    labels = _labels(targets, task, path, strict) if task.kind == "classification" else ()
    return TextData(
        texts=tuple(texts),
        labels=labels,
        responses=() if labels else tuple(targets),
        units=(np.unique(owners, return_inverse=True)[1] if unit_column else np.arange(len(texts))).astype(np.int64),
        unit="patient" if unit_column else "record",
    )


def _trained(path: Path, task: Task, unit_column: str | None, *, strict: bool) -> Iterator[Record]:
    """Yield the records that count; raise the first that could not be read, and if strict any that has a problem."""
    columns = [task.text_column, task.label_column, *([unit_column] if unit_column else [])]
    for record in records(path, columns, unit_column=unit_column):
        if record.problem is not None and (strict or record.row is None):
            raise record.problem
        if not record.left_out:
            yield record
