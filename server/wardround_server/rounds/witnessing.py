"""Getting the members' cosignatures on a checkpoint: no round r+1 without the quorum on round r.

Rules (docs/spec/audit.md, rules 9 to 12 and 19).
- Every member, also one that missed the round, is offered the checkpoint with its own entries.
- A cosignature counts only if it verifies over exactly the offered checkpoint with the member's
  identity from the co-signed study.
- A refusal is an audit event; the round waits until the quorum is reached.
- A member that has seen more of this log than the server holds stops the server: an old copy was restored.
- A member that has just started trains only after a quorum cosigned a tree with its fresh nonce: `exchange` sees to
  that and then asks it again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.audit.events import ClockSkewed, WitnessNonce, WitnessRefused
from wardround_common.audit.witness import verify_cosignature
from wardround_common.documents import Document
from wardround_common.errors import VerificationError, WardroundError
from wardround_common.rounds import BlobRef, CheckpointOffer, Cosignature, FreshWanted, StaleOffer, document_format
from wardround_server.rounds.desk import Desk, StudyStatus
from wardround_server.rounds.replies import replies, send
from wardround_server.transport.flower import unpack

MAX_REFRESHES = 8
"""Times that a site may start again during one exchange; then its last reply stands, as a refusal."""

MAX_SKEW_S = 30
"""Seconds between a site's clock and the server's from which on the log says so."""

Content = Mapping[str, tuple[Document, tuple[BlobRef, ...]]]


def require_quorum(grid: Grid, desk: Desk, round_: int) -> tuple[str, tuple[str, ...]]:
    """Return the newest checkpoint with the quorum's cosignatures, and who cosigned.

    Raises:
        VerificationError: too many members refused.
        StorageError: a member has seen a larger log, or the cosigned checkpoint could not be stored.
        Interrupted: the server is shutting down.
    """
    note, witnesses = collect_cosignatures(grid, desk, round_)
    needed = desk.study.cohort.witness_quorum
    if len(witnesses) < needed:
        refused = ", ".join(sorted(set(desk.sites) - set(witnesses)))
        _report(desk, round_, f"not cosigned by {refused}")
        raise VerificationError(
            "witness-quorum-missing",
            f"{len(witnesses)} of {needed} needed members cosigned the audit log; not {refused}",
            next_step="ask those members for their log; the study goes on when they cosign after a restart",
        )
    return note, witnesses


def exchange(
    grid: Grid,
    desk: Desk,
    kind: str,
    round_: int,
    content: Content,
    *,
    enough: Callable[[], bool],
    waiting: Callable[[list[str]], None],
) -> Iterator[tuple[str, Message]]:
    """Send and yield (site, reply) as `replies` does; sites that want a fresh checkpoint get it and are asked again.

    Raises:
        As `require_quorum`.
    """
    wanted: dict[str, str] = {}
    for attempt in range(MAX_REFRESHES + 1):
        wanted.clear()
        done: set[str] = set()
        pending = send(grid, desk, kind, f"{round_}.{kind}", content)
        # Sites that want a fresh checkpoint have not answered yet: they must not wait for one that is away.
        for site, reply in replies(grid, desk, pending, enough=lambda: bool(wanted) or enough(), waiting=waiting):
            nonce = _wanted_nonce(reply) if attempt < MAX_REFRESHES else None
            if nonce is None:
                done.add(site)
                yield site, reply
            else:
                wanted[site] = nonce
        if not wanted:
            return
        refresh(grid, desk, round_, wanted)
        content = {site: content[site] for site in content if site not in done}


def refresh(grid: Grid, desk: Desk, round_: int, wanted: Mapping[str, str]) -> None:
    """Log the sites' nonces, have a quorum cosign them, and show those sites the result.

    Raises:
        As `require_quorum`.
    """
    study = desk.study.sha256()
    nonces = [WitnessNonce(study=study, site=site, nonce=nonce) for site, nonce in sorted(wanted.items())]
    desk.audit.append([(event, frozenset({event.site})) for event in nonces])
    require_quorum(grid, desk, round_)
    # Those sites have cosigned a tree with their nonce; this offer carries the note that others cosigned it too.
    _pass(grid, desk, round_, tuple(wanted), needed=len(wanted))


def collect_cosignatures(grid: Grid, desk: Desk, round_: int) -> tuple[str, tuple[str, ...]]:
    """Return the newest checkpoint with its cosignatures, and who cosigned.

    Sites that are behind are offered an earlier tree first; then everybody is asked again, until all
    answers are over one tree.

    Raises:
        Interrupted: the server is shutting down.
        StorageError: as `require_quorum`.
    """
    quorum = desk.study.cohort.witness_quorum
    refused: set[str] = set()
    while True:
        asked = tuple(site for site in desk.present if site not in refused)
        tally = _pass(grid, desk, round_, asked, needed=quorum)
        refused |= tally.refused
        if not tally.behind:
            break
    events = [WitnessRefused(study=desk.study.sha256(), round=round_, site=site) for site in sorted(refused)]
    if events:
        desk.audit.append([(event, frozenset({event.site})) for event in events])
    return desk.audit.cosigned, tuple(sorted(tally.lines))


def note_size(note: str) -> int:
    """Return the tree size of a checkpoint that our own log wrote."""
    return int(note.split("\n")[1])


@dataclass(kw_only=True)
class _Tally:
    """One pass over the sites: lines over the tree of `size`, sites to ask again, refusals."""

    size: int
    lines: dict[str, str] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


def _pass(grid: Grid, desk: Desk, round_: int, sites: tuple[str, ...], *, needed: int) -> _Tally:
    """Offer one tree to `sites` and store their cosignatures."""
    study, seen = desk.study.sha256(), {site: desk.audit.witnessed(site) for site in sites}
    size = desk.audit.size  # one size for all, though other studies append meanwhile
    offers = {site: desk.audit.offer(study, round_, site, old, size=size) for site, old in seen.items()}
    tally, partial = _Tally(size=size), dict[int, list[str]]()

    def waiting(missing: list[str]) -> None:
        _report(desk, round_, f"waiting for cosignatures of {', '.join(missing)}")

    content: Content = {site: (offer, ()) for site, offer in offers.items()}
    pending = send(grid, desk, "query.cosign", f"{round_}.cosign", content)
    for site, reply in replies(grid, desk, pending, enough=lambda: len(tally.lines) >= needed, waiting=waiting):
        line = _take(desk, site, offers[site], reply, tally)
        if line:
            partial.setdefault(note_size(offers[site].checkpoint), []).append(line)
    for offered, lines in sorted(partial.items()):
        desk.audit.add_cosignatures(lines, offered, quorum=desk.study.cohort.witness_quorum)
    return tally


def _take(desk: Desk, site: str, offer: CheckpointOffer, reply: Message, tally: _Tally) -> str:
    """Count one reply; return its cosignature line, '' if it is none."""
    try:
        answer = _answer(desk, site, offer, reply)
    except (VerificationError, ValueError):
        answer = None
    if isinstance(answer, StaleOffer):
        tally.behind.add(site)
    elif answer is None:
        tally.refused.add(site)
    elif note_size(offer.checkpoint) == tally.size:
        tally.lines[site] = answer.line
    else:
        tally.behind.add(site)
    return answer.line if isinstance(answer, Cosignature) else ""


def _answer(desk: Desk, site: str, offer: CheckpointOffer, reply: Message) -> Cosignature | StaleOffer | None:
    """Return the verified cosignature or the site's other size; None if it refused or sent something else."""
    if reply.has_error():
        return None
    try:
        document, _ = unpack(reply)
        stale = document_format(document) == "wardround/stale-offer/1"
        answer = StaleOffer.from_bytes(document) if stale else Cosignature.from_bytes(document)
    except WardroundError:
        return None
    if isinstance(answer, StaleOffer):
        if answer.size == offer.old_size:
            return None  # it is not stale: asking again would go on for ever
        desk.audit.note_seen(site, answer.size, answer.note)
        return answer
    _watch_clock(desk, site, verify_cosignature(answer.line, offer.checkpoint, site, desk.study.member(site).identity))
    return answer


def _watch_clock(desk: Desk, site: str, time: int) -> None:
    """Log a site whose clock is far from ours: one of both makes the log's times worth less."""
    skew = time - int(desk.wall_clock())
    if abs(skew) > MAX_SKEW_S:
        desk.audit.append([(ClockSkewed(site=site, seconds=skew), frozenset({site}))])


def _wanted_nonce(reply: Message) -> str | None:
    if reply.has_error():
        return None
    try:
        document, _ = unpack(reply)
        if document_format(document) != "wardround/fresh-wanted/1":
            return None
        return FreshWanted.from_bytes(document).nonce
    except WardroundError:
        return None


def _report(desk: Desk, round_: int, message: str) -> None:
    desk.report(
        StudyStatus(
            phase="paused", study=desk.study.name, round=round_, rounds=desk.study.privacy.rounds, message=message
        )
    )
