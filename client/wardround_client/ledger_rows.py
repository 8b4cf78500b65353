"""The ledger's rows: what is read from its file, as frozen values.

Rules. Reading decides nothing and changes nothing; `ledger` holds the rules. ε is not stored as a fact: what was
spent is priced from the constants of the rounds that began, every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from wardround_client.ledger_store import LedgerStore
from wardround_common.documents import Document
from wardround_common.errors import BudgetError
from wardround_common.privacy.accountant import Price, price_repeated
from wardround_common.privacy.mechanism import (
    Adjacency,
    EvaluatedGaussian,
    MechanismRecord,
    SubsampledGaussian,
    Unit,
    in_rounds,
    parse_record,
)
from wardround_common.rounds import BlobRef

Runs = tuple[MechanismRecord, int]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A round's one answer: envelope of the header, envelope of the mechanism record, the sealed update's name."""

    header: bytes = field(repr=False)
    record: bytes = field(repr=False)
    sealed: BlobRef


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One round that began: times in seconds since 1970 (UTC); `committed_at` is None if it was never answered."""

    study: str
    name: str
    round: int
    plan: str
    began_at: int
    committed_at: int | None
    recovered: bool  # entered from the audit trail, after an old copy of this site was restored
    mechanism: MechanismRecord  # of this round
    space: str


class StudyRow(Document):
    """What one study spent so far (`epsilon`) and what its whole plan may cost (`epsilon_reserved`).

    `epsilon_replaced` is `epsilon` under the replace-one relation; `epsilon_every_site` is the worst case for a
    unit that is present at every one of the study's `sites`, None where that is beyond any protection.
    """

    study: str  # name
    digest: str
    space: str
    sites: int
    rounds_spent: int
    rounds_reserved: int
    closed: bool
    set_back: bool  # an old copy of this site was restored: the whole plan stays charged
    epsilon: float
    epsilon_reserved: float
    epsilon_replaced: float
    epsilon_every_site: float | None
    delta: float
    unit: Unit
    adjacency: Adjacency
    accountant: str


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """A row of `studies` with the number of its rounds that began."""

    study: str
    name: str
    mechanism: MechanismRecord  # of a round that evaluates if any does
    rounds: int
    delta: float
    epsilon: float
    closed: bool
    space: str
    dataset: str | None
    sites: int
    set_back: bool
    begun: int
    evaluated: int  # rounds among them that evaluated

    @property
    def charged_rounds(self) -> int:
        """How many rounds count against the cap: the whole plan while it is open, then the rounds that began.

        Of a study that this site was set back in, always the whole plan: what it had spent is not known.
        """
        return self.begun if self.closed and not self.set_back else self.rounds

    @property
    def charged(self) -> tuple[Runs, ...]:
        """What counts against the cap, as (record, times); see `charged_rounds`."""
        return self.ran if self.closed and not self.set_back else in_rounds(self.mechanism, self.rounds)

    @property
    def ran(self) -> tuple[Runs, ...]:
        """What the rounds that began ran, as (record, times)."""
        return in_rounds(self.mechanism, self.begun, self.evaluated)

    @property
    def spent(self) -> Price | None:
        """The price of the rounds that began, or None if none did."""
        return price_repeated(self.ran, self.delta) if self.begun else None

    @property
    def at_every_site(self) -> float | None:
        """ε of a unit that is present at every member, of the rounds that began; None if it is beyond any price."""
        if not self.begun:
            return 0.0
        try:
            return price_repeated([(record, times * self.sites) for record, times in self.ran], self.delta).epsilon
        except BudgetError:
            return None


def reserved(store: LedgerStore) -> list[Reserved]:
    """Return all studies in the order of their reservation."""
    found = store.query(
        "SELECT study, name, mechanism, rounds, delta, epsilon, closed, space, dataset, sites, set_back, "
        "(SELECT count(*) FROM rounds WHERE rounds.study = studies.study) FROM studies ORDER BY studies.rowid"
    )
    mechanisms = {row[0]: parse_record(row[2]) for row in found}
    return [
        Reserved(
            study=study,
            name=name,
            mechanism=mechanisms[study],
            rounds=rounds,
            delta=delta,
            epsilon=epsilon,
            closed=bool(closed),
            space=space,
            dataset=dataset,
            sites=sites,
            set_back=bool(set_back),
            begun=begun,
            evaluated=_evaluated(store, study, mechanisms[study]),
        )
        for study, name, _, rounds, delta, epsilon, closed, space, dataset, sites, set_back, begun in found
    ]


def _evaluated(store: LedgerStore, study: str, mechanism: MechanismRecord) -> int:
    """Return how many rounds of a study that began evaluated: those whose number `every` divides."""
    if isinstance(mechanism, SubsampledGaussian):
        return 0
    sql = "SELECT count(*) FROM rounds WHERE study = ? AND round % ? = 0"
    return int(store.query(sql, study, mechanism.evaluation.every)[0][0])


def begun_round(store: LedgerStore, study: str, round_: int) -> tuple[str, Stored | None] | None:
    """Return (plan, stored answer or None) of a round that began, else None."""
    found = store.query(
        "SELECT plan, header, record, sealed_digest, sealed_length FROM rounds WHERE study = ? AND round = ?",
        *(study, round_),
    )
    if not found:
        return None
    plan, header, record, digest, length = found[0]
    if header is None:
        return plan, None
    return plan, Stored(header=header, record=record, sealed=BlobRef(digest=digest, length=length))


def round_rows(store: LedgerStore) -> Sequence[RoundRow]:
    """Return every round that began, in that order."""
    found = store.query(
        "SELECT study, name, round, plan, began_at, committed_at, recovered, mechanism, space "
        "FROM rounds JOIN studies USING (study) ORDER BY rounds.rowid"
    )
    return [
        RoundRow(
            study=study,
            name=name,
            round=round_,
            plan=plan,
            began_at=began_at,
            committed_at=committed_at,
            recovered=bool(recovered),
            mechanism=_of_round(parse_record(mechanism), round_),
            space=space,
        )
        for study, name, round_, plan, began_at, committed_at, recovered, mechanism, space in found
    ]


def _of_round(record: MechanismRecord, round_: int) -> MechanismRecord:
    if isinstance(record, EvaluatedGaussian) and not record.evaluation.runs_in(round_):
        return record.training
    return record


def renyi_order(store: LedgerStore, space: str) -> int | None:
    """Return the order of a space's lifetime filter, or None before its first reservation."""
    found = store.query("SELECT renyi_order FROM filters WHERE space = ?", space)
    return int(found[0][0]) if found else None


def study_row(row: Reserved) -> StudyRow:
    """Return `row` as it is shown to people."""
    price = row.spent or price_repeated(in_rounds(row.mechanism, row.rounds), row.delta)
    return StudyRow(
        study=row.name,
        digest=row.study,
        space=row.space,
        sites=row.sites,
        rounds_spent=row.begun,
        rounds_reserved=row.charged_rounds,
        closed=row.closed,
        set_back=row.set_back,
        epsilon=price.epsilon if row.begun else 0.0,
        epsilon_reserved=row.epsilon,
        epsilon_replaced=price.epsilon_replaced if row.begun else 0.0,
        epsilon_every_site=row.at_every_site,
        delta=row.delta,
        unit=price.unit,
        adjacency=price.adjacency,
        accountant=price.accountant,
    )
