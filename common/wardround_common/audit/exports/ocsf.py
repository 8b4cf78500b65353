"""OCSF 1.x base events (class 0), one JSON a line: OCSF has no class for training under differential privacy.

What a log pipeline needs is in standard attributes; what is ours is in `unmapped`, index and proof among it.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from wardround_common import __version__
from wardround_common.audit.exports.record import Context, Record

OCSF_VERSION = "1.5.0"

_OTHER = 99  # activity_id "Other": the event's own kind is in metadata.event_code
_INFORMATIONAL, _LOW, _MEDIUM = 1, 2, 3
_SUCCESS, _FAILURE = 1, 2

_FAILURES = frozenset({"auth.failed", "client.dropped", "round.failed", "witness.refused", "unreadable"})


def export(records: Iterable[Record], context: Context) -> Iterator[bytes]:
    """Yield one JSON document a line."""
    for record in records:
        yield json.dumps(event(record, context), ensure_ascii=False).encode() + b"\n"


def event(record: Record, context: Context) -> dict[str, Any]:
    """Return one entry as an OCSF base event."""
    row = record.row
    failed = row.kind in _FAILURES or row.signature == "invalid"
    severity = _MEDIUM if row.signature == "invalid" else _LOW if failed else _INFORMATIONAL
    return {
        "activity_id": _OTHER,
        "activity_name": row.kind,
        "category_uid": 0,
        "class_uid": 0,
        "type_uid": _OTHER,
        "time": row.time * 1000,
        "severity_id": severity,
        "status_id": _FAILURE if failed else _SUCCESS,
        "message": row.problem or row.kind,
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "wardround", "vendor_name": "wardround", "version": __version__},
            "log_name": context.log,
            "event_code": row.kind,
            "uid": f"{context.log}/{row.index}",
            "sequence": row.index,
        },
        "unmapped": {
            "study": row.study,
            "round": row.round,
            "site": row.site,
            "segment": row.segment,
            "signature": row.signature,
            "facts": dict(row.facts),
            "inclusion": record.proof_json(),
        },
    }
