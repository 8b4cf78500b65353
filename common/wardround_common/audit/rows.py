"""Entries as plain rows: what a reviewer searches, reports and exports.

Rules.
- A row shows everything that its entry says except raw signatures, which are checked here against the trust
  file and shown as `valid`, `invalid` or, for kinds without one, as nothing.
- Nothing is dropped: sealed, unreadable and unknown entries are rows too, with the reason in `problem`.
- A row's order is its index; its time is the server's claim.
- Above `PARALLEL_FROM` entries the work is shared among processes; the result is the same.
Not done here: whether the folder is intact (`verify`), what rows mean together (`history`).

    >>> [row.kind for row in read_rows(LogFolder(Path("audit")), identity, trust)]  # doctest: +SKIP
    ['segment.open', 'server.start']
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Literal

from wardround_common.audit.events import (
    AttackReported,
    Event,
    PrivacySpent,
    StudyApproved,
    StudyCreated,
    SurvivorsFixed,
    Unknown,
    UpdateReceived,
)
from wardround_common.audit.reader import Keyed, LogEntry, LogFolder, keyed_entries, open_keyed
from wardround_common.audit.trust import Trust
from wardround_common.errors import WardroundError, memory_exhausted
from wardround_common.privacy.mechanism import MECHANISM_TYPE
from wardround_common.rounds import EQUIVOCATION_TYPE, UPDATE_HEADER_TYPE
from wardround_common.secagg.documents import MASKED_HEADER_TYPE, SURVIVOR_SET_TYPE, SurvivorSet
from wardround_common.signing import Envelope, fingerprint, open_envelope, parse_public_key
from wardround_common.study import open_proposed

PARALLEL_FROM = 4_096
"""Entries. Below, starting processes takes longer than the work."""

CHUNK_ENTRIES, CHUNK_BYTES = 1_024, 1 << 20
"""What a process is handed at once, whichever is reached first: entries may be of a hundred bytes or of 64 kB."""

_INLINE = frozenset({"kind", "v", "study", "round", "site"})

SignatureState = Literal["", "valid", "invalid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One entry."""

    index: int
    time: int  # seconds since 1970, the server's claim
    segment: str
    kind: str
    study: str = ""  # digest
    round: int = 0  # 0: none
    site: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)  # all other fields; signed documents are decoded
    signature: SignatureState = ""
    problem: str = ""  # why it cannot be read, or what is wrong with its signature

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that the row names."""
        lists = (value for value in self.facts.values() if isinstance(value, list))
        named = [name for names in lists for name in names if isinstance(name, str)]
        return (self.site, *named) if self.site else tuple(named)

    def as_json(self) -> dict[str, Any]:
        """Return the row for programs."""
        return {name: getattr(self, name) for name in self.__slots__}


def read_rows(folder: LogFolder, identity: Any, trust: Trust) -> Iterator[Row]:
    """Yield every entry as a row, in order.

    Args:
        folder: the audit folder; see `verify` for whether it is intact.
        identity: the reviewer's age identity.
        trust: keys against which signatures are checked.

    Raises:
        VerificationError: a file is missing or malformed.
        StorageError: the system ended a process, as it does when memory runs out.
    """
    chunks, here = _chunks(keyed_entries(folder, identity)), 0
    for chunk in chunks:
        yield from _rows(chunk, trust)
        here += len(chunk)
        if here >= PARALLEL_FROM:
            break
    yield from _in_parallel(chunks, trust)


def row_of(entry: LogEntry, trust: Trust) -> Row:
    """Return one entry's row."""
    event = entry.event
    if event is None or isinstance(event, Unknown):
        problem = entry.problem or ("of a kind or version that this program does not know" if event else "")
        said = event or entry.record
        facts = said.model_dump(mode="json") if said else {}
        return Row(
            index=entry.index, time=entry.time, segment=entry.segment, kind=entry.kind, facts=facts, problem=problem
        )
    facts = {name: _plain(value) for name, value in event if name not in _INLINE}
    signature, problem = _check(event, facts, trust)
    return Row(
        index=entry.index,
        time=entry.time,
        segment=entry.segment,
        kind=entry.kind,
        study=getattr(event, "study", ""),
        round=getattr(event, "round", 0),
        site=getattr(event, "site", ""),
        facts=facts,
        signature=signature,
        problem=problem,
    )


def _in_parallel(chunks: Iterator[list[Keyed]], trust: Trust) -> Iterator[Row]:
    """Yield rows in order; a bounded number of chunks is on its way at any time."""
    processes = min(os.cpu_count() or 1, 8)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            waiting = []
            for chunk in chunks:
                waiting.append(pool.submit(_rows, chunk, trust))
                if len(waiting) > 2 * processes:
                    yield from waiting.pop(0).result()
            for chunk_of_rows in waiting:
                yield from chunk_of_rows.result()
    except BrokenProcessPool:
        raise memory_exhausted() from None


def _chunks(keyed: Iterator[Keyed]) -> Iterator[list[Keyed]]:
    chunk, size = [], 0
    for one in keyed:
        chunk.append(one)
        size += len(one.data)
        if len(chunk) == CHUNK_ENTRIES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _rows(chunk: Sequence[Keyed], trust: Trust) -> list[Row]:
    return [row_of(open_keyed(one), trust) for one in chunk]


def _plain(value: Any) -> Any:
    """Return a field as JSON; of a signed document its content and who claims to have signed."""
    if isinstance(value, Envelope):
        signers = [signature.keyid for signature in value.signatures]
        return {"signed by": signers, "type": value.payloadType, "content": _payload(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def _payload(envelope: Envelope) -> Any:
    try:
        return json.loads(envelope.payload_bytes())
    except (WardroundError, ValueError):
        return None


def _check(event: Event, facts: Mapping[str, Any], trust: Trust) -> tuple[SignatureState, str]:
    """Return whether what a member or the operator signed in this event holds."""
    try:
        if isinstance(event, PrivacySpent):
            _check_member(event, event.record, facts["record"], MECHANISM_TYPE, trust)
        elif isinstance(event, UpdateReceived):
            _check_member(event, event.header, facts["header"], _header_type(event.header), trust)
        elif isinstance(event, AttackReported):
            _check_member(event, event.report, facts["report"], EQUIVOCATION_TYPE, trust)
        elif isinstance(event, SurvivorsFixed):
            payload = open_envelope(event.set, SURVIVOR_SET_TYPE, [parse_public_key(trust.operator)])
            found = SurvivorSet.from_bytes(payload)
            if (found.study, found.round, found.adapter) != (event.study, event.round, event.adapter):
                return "invalid", "the signed survivor set is another one than the entry says"
        elif isinstance(event, StudyCreated):
            if open_proposed(event.envelope, trust.operator).sha256() != event.study:
                return "invalid", "the signed study is another one than the entry says"
        elif isinstance(event, StudyApproved):  # signs the text of study.created: `history` checks it
            known = trust.members.get(event.site)
            if known is None or event.signature.keyid != fingerprint(known):
                return "invalid", "not signed with the member's key in the trust file"
            return "", ""
        else:
            return "", ""
    except (WardroundError, ValueError) as error:
        return "invalid", str(error)
    return "valid", ""


def _header_type(header: Envelope) -> str:
    """A sealed update's header or a masked one's; whichever it is, the member's signature covers the type."""
    return MASKED_HEADER_TYPE if header.payloadType == MASKED_HEADER_TYPE else UPDATE_HEADER_TYPE


def _check_member(
    event: PrivacySpent | UpdateReceived | AttackReported,
    envelope: Envelope,
    shown: Mapping[str, Any],
    payload_type: str,
    trust: Trust,
) -> None:
    """Raise unless the entry's site signed the document and the document is about the entry's round."""
    if event.site not in trust.members:
        raise ValueError(f"{event.site} is not a member in the trust file")
    open_envelope(envelope, payload_type, [parse_public_key(trust.members[event.site])])
    content = shown["content"]
    said = [content.get(name) for name in ("study", "round", "site")] if isinstance(content, dict) else []
    if said != [event.study, event.round, event.site]:
        raise ValueError("the signed document is about another study, round or site than the entry")
