"""The segment that the audit log seals entries under now (docs/spec/audit.md, rules 2 and 3).

Rules.
- A segment's age file is durable before its segment.open entry is handed out.
- A new one begins after a start, a day, 65,536 entries, a change of reviewers, a clock that went back, and `drop`.
Not done here: the log, files' fate after a failure.

    >>> segments.entries_for(1, now=0.0)  # doctest: +SKIP
    [b'...']
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from wardround_common.audit.events import Event
from wardround_common.audit.framing import SEGMENT_BYTES, frame_record
from wardround_common.audit.seal import Sealer
from wardround_common.audit.segment import SEED_BYTES, parse_recipient, wrap_seed
from wardround_common.study import Reviewer
from wardround_server.auditfiles import Files, publish

SEGMENT_SECONDS = 86_400.0
"""A stolen live ratchet opens what comes after it in its segment; a day bounds that."""

SEGMENT_ENTRIES = 65_536
"""Bounds what one seed opens."""


class Segments:
    """Begins segments and seals under the newest.

    Args:
        keys: folder of age files.
        files: file-system calls.
        reviewers: who can read.
        random_bytes: source of seeds.

    Raises:
        ConfigError: a recipient is malformed.
        ValueError: no reviewer.
    """

    def __init__(
        self, *, keys: Path, files: Files, reviewers: Sequence[Reviewer], random_bytes: Callable[[int], bytes]
    ) -> None:
        self._keys, self._files, self._random = keys, files, random_bytes
        self._recipients = _recipients(reviewers)
        self._sealer: Sealer | None = None
        self._since = 0.0

    @property
    def current(self) -> str:
        """Name of the segment that the next entry belongs to, '' if a new one begins."""
        return self._sealer.segment.hex() if self._sealer else ""

    def use(self, reviewers: Sequence[Reviewer]) -> None:
        """Use other reviewers from the next entry on.

        Raises:
            ConfigError: a recipient is malformed.
        """
        recipients = _recipients(reviewers)
        if recipients != self._recipients:
            self._recipients, self._sealer = recipients, None

    def drop(self) -> None:
        """Never seal under the current segment again."""
        self._sealer = None

    def entries_for(self, count: int, *, now: float) -> list[bytes]:
        """Return what to log before the next `count` entries: a new segment's segment.open, or nothing.

        Raises:
            OSError: its age file could not be written.
        """
        sealer = self._sealer
        young = 0 <= now - self._since < SEGMENT_SECONDS
        if sealer and young and sealer.count + count <= SEGMENT_ENTRIES:
            return []
        self._sealer = None
        segment, seed = self._random(SEGMENT_BYTES), self._random(SEED_BYTES)
        wrap, opened = wrap_seed(seed, self._recipients)
        publish(self._files, {self._keys / f"{segment.hex()}.age": wrap})
        self._sealer, self._since = Sealer(segment=segment, seed=seed), now
        return [frame_record(segment, opened, time=int(now))]

    def seal(self, event: Event, *, now: float) -> tuple[bytes, bytes]:
        """Return (entry, message key); `entries_for` came before.

        Raises:
            ProtocolError: the event is too large. The segment is dropped: its next counter is not used.
        """
        assert self._sealer is not None
        try:
            return self._sealer.seal(event.to_bytes(), time=int(now))
        except BaseException:
            self._sealer = None
            raise


def _recipients(reviewers: Sequence[Reviewer]) -> tuple[str, ...]:
    if not reviewers:
        raise ValueError("an audit log needs at least one reviewer")
    recipients = tuple(sorted({reviewer.recipient for reviewer in reviewers}))
    for recipient in recipients:
        parse_recipient(recipient)
    return recipients
