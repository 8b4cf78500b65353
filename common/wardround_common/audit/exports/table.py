"""CSV (RFC 4180), one line an entry. Hashes are hexadecimal: no cell can begin like a formula of a spreadsheet."""

import csv
import io
import json
from collections.abc import Iterable, Iterator

from wardround_common.audit.exports.record import Context, Record

COLUMNS = (
    "index",
    "claimed_time_utc",
    "segment",
    "kind",
    "study",
    "round",
    "site",
    "signature",
    "problem",
    "facts",
    "leaf_hash",
    "tree_size",
    "root",
    "proof",
)


def export(records: Iterable[Record], context: Context) -> Iterator[bytes]:
    """Yield the table line by line."""
    yield _line(COLUMNS)
    for record in records:
        row = record.row
        facts = json.dumps(row.facts, sort_keys=True, ensure_ascii=False) if row.facts else ""
        where = [row.study, row.round or "", row.site, row.signature, _cell(row.problem), facts]
        proof = [record.leaf.hex(), record.tree_size, record.root.hex(), " ".join(h.hex() for h in record.proof)]
        yield _line([row.index, record.when, row.segment, row.kind, *where, *proof])


def _line(cells: Iterable[object]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _cell(text: str) -> str:
    """Return free text so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
