"""Parquet tables, a few hundred rows at a time. Needs the extra `parquet` (pyarrow, docs/adr/0021).

Rules.
- Only the columns that are asked for are read. They hold text, whole numbers, numbers or booleans; an identifier is
  text or a whole number, because 1001.0 and 1001 would be two patients. Anything else is refused by the column's type.
- A null, and a number that is none (NaN, as pandas writes a missing value), is a missing value.
- What pyarrow says of a file is not repeated: it may quote values.
- A page is checked before its values are used: text that is not UTF-8 is found by row.

    >>> [record.place for record in parquet_records(Path("notes.parquet"), ("text",))]  # doctest: +SKIP
    [1, 2]
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from wardround_client.data.record import Record, Row, malformed, not_utf8, open_data
from wardround_common.errors import ConfigError, DataError

BATCH_ROWS = 256
"""Rows in memory at once: of notes of the largest size 256 MiB."""

READ_BYTES = 1 << 20
"""Read ahead in each column, instead of a whole row group, which may be as large as the file."""


def parquet_records(path: Path, columns: Sequence[str], *, unit_column: str | None = None) -> Iterator[Record]:
    """Yield the rows of a Parquet file; `place` is the row, from 1.

    Args:
        path: the file.
        columns: those that are read; one that the table lacks is missing in every row.
        unit_column: which of them holds identifiers.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: no Parquet file, one that was cut off, or a column of another type.
    """
    arrow, parquet = _library()
    with open_data(path) as handle:
        try:
            table = parquet.ParquetFile(handle, buffer_size=READ_BYTES, pre_buffer=False)
        except (arrow.ArrowException, OSError, ValueError):
            raise malformed(path.name, "not a whole Parquet file; its end is missing or damaged") from None
        names = [name for name in dict.fromkeys(columns) if name in table.schema_arrow.names]
        for name in names:
            _require_type(arrow, table.schema_arrow, name, path, identifies=name == unit_column)
        yield from _rows(arrow, table, names, path)


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "parquet-not-installed",
            "Parquet files need pyarrow, which is not installed",
            next_step="run: pip install 'wardround[parquet]'; or export the cohort as CSV or JSON Lines",
        ) from None
    return pyarrow, pyarrow.parquet


def _require_type(arrow: Any, schema: Any, name: str, path: Path, *, identifies: bool) -> None:
    if len(schema.get_all_field_indices(name)) > 1:
        raise malformed(path.name, f"two columns are called {name!r}")
    found = schema.field(name).type
    kind = found.value_type if arrow.types.is_dictionary(found) else found
    good = [arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_string_view, arrow.types.is_integer]
    if not identifies:
        good += [arrow.types.is_floating, arrow.types.is_boolean]
    if not any(fits(kind) for fits in (*good, arrow.types.is_null)):
        raise DataError(
            "data-wrong-type",
            f"{path.name}: column {name!r} holds {kind}, not text",
            next_step="write it as text; an identifier as text or whole numbers (pandas: astype('string'))",
        )


def _rows(arrow: Any, table: Any, names: Sequence[str], path: Path) -> Iterator[Record]:
    place, total, size = 0, max(1, table.metadata.num_rows), path.stat().st_size
    try:
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=list(names), use_threads=False):
            for row in _values(arrow, batch):
                place += 1
                problem = None if row is not None else not_utf8(f"{path.name}, row {place}")
                yield Record(place=place, row=row, problem=problem, read=size * place // total)
    except (arrow.ArrowException, OSError, ValueError):
        problem = malformed(f"{path.name}, row {place + 1}", "from here on the table cannot be read")
        yield Record(place=place + 1, row=None, problem=problem, read=size)


def _values(arrow: Any, batch: Any) -> Iterator[Row | None]:
    """Yield each row of a batch, None for one that holds bytes that are not UTF-8."""
    try:
        batch.validate(full=True)
        columns = batch.to_pydict()
    except (arrow.ArrowInvalid, UnicodeDecodeError):
        yield from (_value_by_value(batch, index) for index in range(batch.num_rows))
        return
    for index in range(batch.num_rows):
        yield {name: _plain(values[index]) for name, values in columns.items()}


def _value_by_value(batch: Any, index: int) -> Row | None:
    try:
        return {name: _plain(batch.column(name)[index].as_py()) for name in batch.schema.names}
    except UnicodeDecodeError:
        return None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
