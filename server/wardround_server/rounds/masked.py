"""Protection `secagg`: a round's sum is collected under masks, opened once, and nothing else is learnt.

Rules (docs/spec/round.md, "Under secure aggregation"; docs/spec/secagg.md).
- Keys and shares for a round come with the round before; only the first round, and what failed, asks for them.
- One running sum is kept; vectors are files that are added as they arrive.
- The survivor set is signed, stored and logged before the first request to open it.
- A sum whose sentinels or range do not hold is refused: the round failed and nobody can be named.
"""

from flwr.serverapp import Grid

from wardround_common.audit.events import SumOpened
from wardround_common.documents import sha256_digest
from wardround_common.errors import VerificationError
from wardround_common.rounds import BlobRef, RoundAnswer, RoundPlan
from wardround_common.secagg.coordinator import ParcelBook
from wardround_common.secagg.documents import MaskedHeader
from wardround_common.secagg.kept import store_round
from wardround_common.secagg.recompute import Kept
from wardround_common.signing import Envelope
from wardround_server.rounds.desk import Desk, Entry
from wardround_server.rounds.gathering import Failure, Gathered, dropped
from wardround_server.rounds.masked_keys import prepare
from wardround_server.rounds.masked_opening import Opening, fix_survivors
from wardround_server.rounds.masked_sum import MaskedSum
from wardround_server.rounds.masking import Masking
from wardround_server.rounds.progress import Progress
from wardround_server.rounds.state import RoundState

_FAILURES: dict[str, Failure] = {
    "secagg-sum-garbled": "sum-garbled",
    "secagg-sum-out-of-range": "sum-out-of-range",
    "secagg-shares-inconsistent": "shares-inconsistent",
}


class MaskedUpdates:
    """Collects a study's masked updates.

    Args:
        desk: the study's collaborators.
        state: where members' messages are kept.
        progress: told who answered.
    """

    def __init__(self, *, desk: Desk, state: RoundState, progress: Progress) -> None:
        self._desk = desk
        self._state = state
        self._progress = progress
        self._before: ParcelBook | None = None  # of the round before: spares keys that its members know

    def gather(self, grid: Grid, plan: RoundPlan, *, more: bool) -> Gathered:
        """Run the round (see `gathering.Updates`)."""
        m = Masking(desk=self._desk, state=self._state, progress=self._progress)
        parcels = prepare(m, grid, plan.round, self._before)
        if parcels is None:
            return Gathered(entries=[*m.refused, *_all_late(m, plan)], failed="cohort-too-small")
        self._before = parcels
        s = MaskedSum(m=m, plan=plan, parcels=parcels, more=more)
        if not m.kept(plan.round, "set"):
            s.collect(grid)
        if not s.enough:
            return Gathered(entries=_entries(s), failed="cohort-too-small")
        opening = Opening(s=s, signed=fix_survivors(s))
        self._progress.report("running", plan.round, "opening the sum")
        opening.run(grid)
        return self._opened(s, opening)

    def forget(self, round_: int) -> None:
        """Remove vectors, shares and messages of rounds up to this one; keep what the study says must be kept."""
        study = self._desk.study.sha256()
        self._keep(round_)
        for body in self._state.kept(study, round_, "answer").values():
            header = RoundAnswer.from_bytes(body).header
            self._desk.blobs.remove(MaskedHeader.from_bytes(header.payload_bytes()).vector)
        for body in self._state.kept(study, round_, "parcels").values():
            self._desk.blobs.remove(BlobRef.from_bytes(body))
        self._state.forget(study, round_)

    def _keep(self, round_: int) -> None:
        """Store an opened round for a reviewer, once, if the study says so."""
        secagg, folder = self._desk.study.secagg, self._desk.sums
        m = Masking(desk=self._desk, state=self._state, progress=self._progress)
        survivors, openings = m.kept(round_, "set").get(""), m.kept(round_, "opening")
        if secagg is None or not secagg.keep_vectors or folder is None or survivors is None or not openings:
            return
        shown, roster = m.fixed(round_, "keys") or (), m.fixed(round_, "roster") or ()
        answers = {site: RoundAnswer.from_bytes(body).header for site, body in m.kept(round_, "answer").items()}
        vectors = {site: MaskedHeader.from_bytes(header.payload_bytes()).vector for site, header in answers.items()}
        refs = {site: BlobRef.from_bytes(body) for site, body in m.kept(round_, "parcels").items() if site in roster}
        kept = Kept(
            offers={site: offer for site, offer in m.kept(round_, "offer").items() if site in shown},
            parcels={site: self._desk.blobs.read(blob) for site, blob in refs.items()},
            headers=answers,
            vectors={site: self._desk.blobs.path(blob) for site, blob in vectors.items()},
            survivors=Envelope.from_bytes(survivors),
            openings=openings,
        )
        plan = next(record.plan for record in self._state.rounds(m.study) if record.plan.round == round_)
        store_round(folder / str(round_), plan, kept)

    def _opened(self, s: MaskedSum, opening: Opening) -> Gathered:
        everyone = frozenset(self._desk.sites)
        entries: list[Entry] = [*_entries(s), *((attack, everyone) for attack in opening.attacks)]
        if opening.attacks:
            return Gathered(entries=entries, failed="attacked")
        if not opening.openings.enough:
            return Gathered(entries=entries, failed="not-opened")
        try:
            s.total.remove(opening.openings.masks())
            mean = s.total.means(survivors=len(opening.survivors))
        except VerificationError as error:
            return Gathered(entries=entries, failed=_FAILURES.get(error.code, "not-opened"))
        opened = SumOpened(
            study=s.plan.study,
            round=s.plan.round,
            set=sha256_digest(opening.signed.payload_bytes()),
            openers=tuple(sorted(opening.openers)),
            sentinels=len(opening.survivors),
        )
        entries.append((opened, everyone))
        return Gathered(entries=entries, survivors=opening.survivors, mean=mean)


def _entries(s: MaskedSum) -> list[Entry]:
    return [*s.accepted_entries(), *s.entries, *s.m.refused]


def _all_late(m: Masking, plan: RoundPlan) -> list[Entry]:
    return [dropped(plan, site, "late") for site in m.desk.sites]
