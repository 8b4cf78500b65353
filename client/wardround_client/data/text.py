"""Training text from a CSV or JSON Lines file.

Rules.
- Every problem is a `DataError` that names file, line and column, never the text itself: the error
  ends up in a log.
- Checks run where a person decides, when a study is approved (`strict=True`). During rounds
  (`strict=False`) a record that cannot be used stays in its place and contributes zero, because a
  refusal that depends on the data would be seen from outside.
- The unit of privacy is a column of the file; without it every record is its own unit.
Not done here: tokenising, looking for duplicates or names.

    >>> load_texts(Path("notes.csv"), study.task).labels
    (0, 2, 1)
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wardround_common.errors import DataError
from wardround_common.study import Task

MAX_RECORD_CHARACTERS = 1 << 20
"""Far beyond any clinical note; such a field means that a quote is missing somewhere above."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Records of one hospital, in the file's order. Its repr shows no text."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]  # index into task.labels; -1 for an unusable record; empty for instruction
    responses: tuple[str, ...]  # empty for classification
    units: NDArray[np.int64]  # [records], unit index of each record
    unit: Literal["record", "patient"]  # what a unit is

    @property
    def unit_count(self) -> int:
        """Number of units; never leaves the hospital."""
        return int(self.units.max()) + 1 if len(self.units) else 0

    def __repr__(self) -> str:
        return f"TextData(unit={self.unit!r})"


def load_texts(path: Path, task: Task, *, unit_column: str | None = None, strict: bool = True) -> TextData:
    """Read and check a hospital's file.

    Args:
        path: `.csv` (with a header line) or `.jsonl`, UTF-8.
        task: names the columns and, for classification, all labels.
        unit_column: column that identifies the patient; None makes every record its own unit.
        strict: raise for an unusable record instead of keeping it as one that contributes zero.

    Raises:
        DataError: the file cannot be read, or (if strict) a record cannot be used.
    """
    texts, targets, owners = [], [], []
    for line, row in _rows(path):
        place = f"{path.name}, line {line}"
        text, target = (_value(row, column, place, strict) for column in (task.text_column, task.label_column))
        owner = _owner(row, unit_column, place, strict) if unit_column else ""
        owned = unit_column is None or owner != ""
        texts.append(text if owned else "")  # whose record it is, is unknown: it must not count for anyone
        targets.append(target)
        owners.append(f"{owner}/{'' if owned else line}")
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


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    readers: dict[str, Callable[[str, Path], Iterator[tuple[int, Row]]]] = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            "data-unknown-format",
            f"{path.name} is neither .csv nor .jsonl",
            next_step="export the cohort as CSV with a header line, or as JSON Lines",
        )
    return reader(_read(path), path)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "data-not-utf8",
            f"{path.name} is not UTF-8 (first bad byte at offset {error.start})",
            next_step="convert it, for example: iconv -f WINDOWS-1252 -t UTF-8",
        ) from None
    except OSError as error:
        raise DataError(
            "data-missing",
            f"cannot read {path}: {error.strerror}",
            next_step="correct the data set's path in client.toml, or the file's permissions",
        ) from None


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MAX_RECORD_CHARACTERS)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise _malformed(path, reader.line_num, str(error)) from None


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            row = json.loads(part)
        except (ValueError, RecursionError):
            raise _malformed(path, line, "not JSON") from None
        if not isinstance(row, dict):
            raise _malformed(path, line, "not a JSON object")
        yield line, row


def _value(row: Row, column: str, place: str, strict: bool) -> str:
    """Return the row's text in `column`; an empty one, if not strict, marks a record that contributes zero."""
    value = row.get(column)
    text = str(value) if isinstance(value, int | float) else value
    if isinstance(text, str) and text.strip():
        return text
    if not strict:
        return ""
    if column not in row:
        raise DataError(
            "data-missing-column",
            f"{place}: there is no column {column!r}",
            next_step="name the columns as the study does (text_column, label_column), or set unit_column",
        )
    raise DataError(
        "data-empty-text",
        f"{place}: column {column!r} holds no text",
        next_step="remove records without text or label from the export",
    )


def _owner(row: Row, column: str, place: str, strict: bool) -> str:
    value = row.get(column)
    owner = str(value).strip() if isinstance(value, str | int) else ""
    if not owner and strict:
        raise DataError(
            "data-no-unit",
            f"{place}: column {column!r} does not say whose record this is",
            next_step="give every record its patient identifier; without it ε would not hold per patient",
        )
    return owner


def _labels(targets: list[str], task: Task, path: Path, strict: bool) -> tuple[int, ...]:
    index = {label: i for i, label in enumerate(task.labels)}
    labels = tuple(index.get(target.strip(), -1) for target in targets)
    if strict and -1 in labels:
        raise DataError(
            "data-unknown-label",
            f"{path.name}, record {labels.index(-1) + 1}: its label is not one of the study's {len(index)}",
            next_step="map local codes to the study's labels (wardround client check STUDY lists them)",
        )
    if strict and len(set(labels)) < 2:
        raise DataError(
            "data-one-class",
            f"all records of {path.name} have the same label",
            next_step="check the export's label column; a single class teaches the model nothing",
        )
    return labels


def _malformed(path: Path, line: int, why: str) -> DataError:
    return DataError(
        "data-malformed",
        f"{path.name}, line {line}: {why}",
        next_step="repair that line; check quotes and line breaks inside fields",
    )
