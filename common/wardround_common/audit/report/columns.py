"""Every row of a log in the form that the page searches: columns of small numbers and one table of texts.

Rules.
- Equal texts are stored once; most mechanism records of a study are equal.
- Nothing is left out but raw signatures (checked by `rows`) and what a redaction takes away.
- The page gets gzip in base64, so that nothing in it can end a script or be taken for markup.

    >>> columns = Columns(); columns.add(row); columns.packed()[:4]  # doctest: +SKIP
    'H4sI'
"""

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

from wardround_common.audit.rows import Row

_REPEATED = frozenset({"format", "kind", "round", "site", "study"})  # of a signed document: the row says them already


class Columns:
    """Collects rows; `packed` returns them for the page."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, int]] = {"kind": {}, "site": {}, "study": {}, "segment": {}, "text": {}}
        self._columns: dict[str, list[int]] = {name: [] for name in (*self._tables, "time", "round", "signature")}
        self.characters = 0  # of all different texts

    def add(self, row: Row) -> None:
        """Take the next row."""
        texts = {
            "kind": row.kind,
            "site": row.site,
            "study": row.study,
            "segment": row.segment,
            "text": "\n".join(lines(row)),
        }
        for name, text in texts.items():
            table = self._tables[name]
            if text not in table:
                self.characters += len(text)
            self._columns[name].append(table.setdefault(text, len(table)))
        self._columns["time"].append(row.time)
        self._columns["round"].append(row.round)
        self._columns["signature"].append(("", "valid", "invalid").index(row.signature))

    def packed(self) -> str:
        """Return the base64 of gzip of JSON `{"tables": {…}, "columns": {…}}`."""
        document = {
            "tables": {name: list(table) for name, table in self._tables.items()},
            "columns": self._columns,
        }
        data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def lines(row: Row) -> Iterator[str]:
    """Yield the row's facts as `name: value`, one a line."""
    if row.problem:
        yield f"problem: {row.problem}"
    # What a document says comes before how it was signed.
    yield from sorted((line for name, value in row.facts.items() for line in _flat(name, value)), key=_rank)


def _rank(line: str) -> bool:
    return line.partition(":")[0].endswith((".signed by", ".type"))


def _flat(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "content" and isinstance(inner, dict):
                yield from _flat(name, {k: v for k, v in inner.items() if k not in _REPEATED})
            else:
                yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _flat(f"{name}.{number}", part)
    elif isinstance(value, list):
        yield f"{name}: {', '.join(str(part) for part in value)}"
    else:
        yield f"{name}: {value}"
