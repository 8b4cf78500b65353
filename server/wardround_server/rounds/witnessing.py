"""Getting the members' cosignatures on a checkpoint: no round r+1 without the quorum on round r.

Rules.
- Every member, also one that missed the round, is offered the checkpoint with its own entries.
- A cosignature counts only if it verifies over exactly the offered checkpoint with the member's
  identity from the co-signed study.
- A refusal is an audit event; the round waits until the quorum is reached.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.audit.events import WitnessRefused
from wardround_common.audit.witness import verify_cosignature
from wardround_common.errors import WardroundError
from wardround_common.rounds import CheckpointOffer, Cosignature, StaleOffer, document_format
from wardround_server.rounds.desk import Desk, StudyStatus
from wardround_server.rounds.replies import replies, send
from wardround_server.rounds.state import RoundState
from wardround_server.transport.flower import unpack


def collect_cosignatures(grid: Grid, desk: Desk, state: RoundState, round_: int) -> tuple[str, tuple[str, ...]]:
    """Return the newest checkpoint with its cosignatures, and who cosigned.

    Sites that are behind are offered an earlier tree first, or another study may append in between;
    then everybody is asked again, until all answers are over one tree.

    Raises:
        Interrupted: the server is shutting down.
        StorageError: the cosigned checkpoint could not be stored.
    """
    study = desk.study.sha256()
    refused: set[str] = set()
    while True:
        asked = [site for site in desk.present if site not in refused]
        offers = {s: desk.audit.offer(study, round_, s, state.witnessed(study, s)) for s in asked}
        tally = _ask(grid, desk, state, round_, offers)
        refused |= tally.refused
        if not tally.behind:
            break
    desk.audit.add_cosignatures(tuple(tally.lines.values()), tally.size, quorum=desk.study.cohort.witness_quorum)
    if refused:
        events = [WitnessRefused(study=study, round=round_, site=site) for site in sorted(refused)]
        desk.audit.append([(event, frozenset({event.site})) for event in events])
    return desk.audit.cosigned, tuple(sorted(tally.lines))


@dataclass(kw_only=True)
class _Tally:
    """One pass over the sites: lines over the tree of `size`, sites to ask again, refusals."""

    size: int
    lines: dict[str, str] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


def _ask(grid: Grid, desk: Desk, state: RoundState, round_: int, offers: Mapping[str, CheckpointOffer]) -> _Tally:
    study, quorum = desk.study.sha256(), desk.study.cohort.witness_quorum
    tally = _Tally(size=max((note_size(offer.checkpoint) for offer in offers.values()), default=0))

    def waiting(missing: list[str]) -> None:
        _report(desk, round_, f"waiting for cosignatures of {', '.join(missing)}")

    group = f"{round_}.cosign"
    pending = send(grid, desk, "query.cosign", group, {site: (offer, ()) for site, offer in offers.items()})
    for site, reply in replies(grid, desk, pending, enough=lambda: len(tally.lines) >= quorum, waiting=waiting):
        answer, size = _answer(desk, site, offers[site], reply), note_size(offers[site].checkpoint)
        if answer is None:
            tally.refused.add(site)
            continue
        state.set_witnessed(study, site, answer.size if isinstance(answer, StaleOffer) else size)
        if isinstance(answer, Cosignature) and size == tally.size:
            tally.lines[site] = answer.line
        else:
            tally.behind.add(site)
    return tally


def note_size(note: str) -> int:
    """Return the tree size of a checkpoint that our own log wrote."""
    return int(note.split("\n")[1])


def _answer(desk: Desk, site: str, offer: CheckpointOffer, reply: Message) -> Cosignature | StaleOffer | None:
    """Return the verified cosignature or the site's other size; None if it refused or sent something else."""
    if reply.has_error():
        return None
    try:
        document, _ = unpack(reply)
        if document_format(document) == "wardround/stale-offer/1":
            return _newer_size(StaleOffer.from_bytes(document), offer)
        cosignature = Cosignature.from_bytes(document)
        verify_cosignature(cosignature.line, offer.checkpoint, site, desk.study.member(site).identity)
    except WardroundError:
        return None
    return cosignature


def _newer_size(stale: StaleOffer, offer: CheckpointOffer) -> StaleOffer | None:
    """A site can only be at another size within this log, and not at the one that was offered."""
    return stale if offer.old_size != stale.size <= note_size(offer.checkpoint) else None


def _report(desk: Desk, round_: int, message: str) -> None:
    desk.report(
        StudyStatus(
            phase="paused", study=desk.study.name, round=round_, rounds=desk.study.privacy.rounds, message=message
        )
    )
