"""One entry on its way into an export: its row, its proof, and how the log calls itself."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from wardround_common.audit.history import History
from wardround_common.audit.rows import Row


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry with its proof."""

    row: Row
    leaf: bytes  # leaf hash
    tree_size: int  # of the checkpoint that the proof leads to
    root: bytes
    proof: tuple[bytes, ...]

    def proof_json(self) -> dict[str, Any]:
        """Return index and inclusion proof, hashes in base64."""
        return {
            "index": self.row.index,
            "leaf_hash": _text(self.leaf),
            "tree_size": self.tree_size,
            "root": _text(self.root),
            "proof": [_text(hash_) for hash_ in self.proof],
        }

    @property
    def when(self) -> str:
        """The claimed time in ISO 8601, to the second; the year 1970 where it is no date."""
        try:
            return datetime.fromtimestamp(self.row.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (ValueError, OverflowError, OSError):
            return "1970-01-01T00:00:00Z"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an exporter may need beside the records."""

    log: str  # the log's name
    operator: str
    history: History
    redacted: bool


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
