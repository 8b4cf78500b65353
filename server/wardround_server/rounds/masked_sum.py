"""The training step of a masked round: plans go out with each member's kit, vectors are added as they arrive."""

from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.errors import ProtocolError, StorageError, VerificationError
from wardround_common.rounds import BlobRef, KeysOffered, KeysWanted, RoundAnswer, RoundPlan
from wardround_common.secagg.coordinator import Collection, KeyBook, ParcelBook
from wardround_common.secagg.documents import MaskedHeader
from wardround_common.secagg.sums import RunningSum
from wardround_server.rounds.answers import (
    AnswerRefused,
    AnswerRejected,
    guarded,
    open_answer,
    rejected,
    require_record,
)
from wardround_server.rounds.desk import Entry
from wardround_server.rounds.gathering import answer_entries, dropped, refusal_reason
from wardround_server.rounds.masked_keys import drop, key_book, take_keys
from wardround_server.rounds.masking import Masking
from wardround_server.rounds.replies import arrived, send
from wardround_server.rounds.witnessing import Content, exchange
from wardround_server.transport.flower import unpack


@dataclass(kw_only=True)
class MaskedSum:
    """The vectors of one round, added up as they arrive.

    Args:
        m: the study.
        plan: the pinned plan.
        parcels: shares of the members that may mask.
        more: whether keys for another round are wanted.
    """

    m: Masking
    plan: RoundPlan
    parcels: ParcelBook
    more: bool
    entries: list[Entry] = field(default_factory=list, init=False)
    answers: dict[str, RoundAnswer] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.collection = Collection(rules=self.m.rules, plan=self.plan, parcels=self.parcels)
        self.total = RunningSum(self.m.rules)
        self.keys: KeyBook | None = key_book(self.m, self.plan.round + 1, self.parcels) if self.more else None
        for site, body in self.m.kept(self.plan.round, "answer").items():
            self._add(site, RoundAnswer.from_bytes(body))

    @property
    def enough(self) -> bool:
        """Whether a sum of what is here may be opened."""
        return len(self.collection.survivors) >= self.m.need

    def collect(self, grid: Grid) -> None:
        """Ask every member of the roster that has not answered; members without shares are asked for the next keys.

        Raises:
            Interrupted: the server is shutting down.
            StorageError: the state cannot be written.
        """
        m, plan = self.m, self.plan
        asked = [site for site in m.desk.present if self._in_roster(site) and site not in self.answers]
        kits = {site: m.desk.blobs.put(self.parcels.kit(site)) for site in asked}
        content: Content = {site: (plan, (plan.adapter, kit)) for site, kit in kits.items()}
        rejoining = self._ask_for_keys(grid)
        late = {site for site in m.desk.present if site not in self.answers}
        for site, reply in exchange(
            grid,
            m.desk,
            "train",
            plan.round,
            content,
            enough=lambda: self.enough,
            waiting=lambda missing: m.progress.waiting(plan.round, "answers", missing),
        ):
            late.discard(site)
            self._take(site, reply)
        for site, reply in arrived(grid, rejoining):
            m.use(plan.round + 1, site, reply, self._take_keys, "keys")
        drop(m, list(kits.values()))
        self.entries += [dropped(plan, site, "late") for site in sorted(late)]

    def accepted_entries(self) -> list[Entry]:
        """Return the entries of all accepted answers, by site."""
        return [entry for site in sorted(self.answers) for entry in answer_entries(self.plan, site, self.answers[site])]

    def _ask_for_keys(self, grid: Grid) -> dict[str, str]:
        """Ask members that may not mask now, so that they can in the next round; return message id to site."""
        if self.keys is None or self.m.fixed(self.keys.round, "keys") is not None:
            return {}
        outside = [site for site in self.m.desk.present if not self._in_roster(site)]
        wanted = KeysWanted(study=self.m.study, round=self.keys.round)
        group = f"{self.keys.round}.keys"
        return send(grid, self.m.desk, "query.secagg_keys", group, dict.fromkeys(outside, (wanted, ())))

    def _in_roster(self, site: str) -> bool:
        return self.m.rules.names.index(site) in self.parcels.roster

    def _take_keys(self, site: str, document: bytes, blobs: tuple[BlobRef, ...]) -> None:
        assert self.keys is not None
        take_keys(self.m, self.keys, site, KeysOffered.from_bytes(document).keys)

    def _take(self, site: str, reply: Message) -> None:
        plan = self.plan
        try:
            if reply.has_error():
                raise AnswerRefused("failed-locally")
            self._accept(site, *guarded("malformed", lambda: unpack(reply)))
        except AnswerRefused as refusal:
            self.entries.append(dropped(plan, site, refusal_reason(refusal.code)))
        except AnswerRejected as rejection:
            self.entries.append(dropped(plan, site, rejection.reason))
        self.m.progress.answered(site)
        count = f"{len(self.answers)} of {len(self.parcels.roster)} answers"
        self.m.progress.report("running", plan.round, count)

    def _accept(self, site: str, document: bytes, blobs: tuple[BlobRef, ...]) -> None:
        answer = open_answer(document)
        header = guarded("bad-signature", lambda: self.collection.accept(site, answer.header))
        require_record(self.m.desk.study, self.plan, site, answer)
        if blobs != (header.vector,):
            raise rejected("bad-digest", "the answer's blob is not the one that its header names")
        if header.vector.length != self.m.rules.vector_bytes:
            raise rejected("bad-shape", "the vector has another length")
        self._add_vector(header)
        self.m.keep(self.plan.round, "answer", site, answer.to_bytes())
        self.collection.keep(site, answer.header)
        self.answers[site] = answer
        self._next_keys(site, answer)

    def _add_vector(self, header: MaskedHeader) -> None:
        try:
            path = self.m.desk.blobs.path(header.vector)
        except StorageError as error:
            raise AnswerRejected("bad-digest", error) from None
        try:
            self.total.add_file(path, header)
        except VerificationError as error:
            raise AnswerRejected("bad-digest", error) from None

    def _add(self, site: str, answer: RoundAnswer) -> None:
        """Add an answer that was accepted before a restart."""
        header = self.collection.accept(site, answer.header)
        self.total.add_file(self.m.desk.blobs.path(header.vector), header)
        self.collection.keep(site, answer.header)
        self.answers[site] = answer

    def _next_keys(self, site: str, answer: RoundAnswer) -> None:
        if self.keys is None or self.m.fixed(self.keys.round, "keys") is not None:
            return
        try:
            take_keys(self.m, self.keys, site, answer.keys)
        except (ProtocolError, VerificationError):
            self.m.refuse(self.keys.round, site, "keys", "invalid")
