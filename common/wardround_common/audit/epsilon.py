"""Every hospital's ε, recomputed from the audit trail alone, beside what the hospital says itself.

Rules.
- Only mechanism records that the hospital signed count; `dp.price` refuses kinds that it does not know.
- The price is of one study at one hospital: what a patient spent in other studies is the hospital's own secret.
- A hospital's own figure is a `Statement` that it signed and handed over itself; equal means within 1e-9.
- ε never stands alone: δ, unit, adjacency and accountant stand beside it.
Not done here: reading (`rows`), who answered (`history`), the lifetime cap (a hospital's ledger).

    >>> [spent.price.epsilon for spent in recompute(history)]  # doctest: +SKIP
    [7.9989, 7.9989, 7.7134]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from wardround_common.audit.history import History, StudyHistory
from wardround_common.audit.trust import Trust
from wardround_common.documents import Digest, Document, Name
from wardround_common.errors import BudgetError, ConfigError, VerificationError, WardroundError
from wardround_common.privacy.accountant import Price, price
from wardround_common.privacy.mechanism import Adjacency, Unit
from wardround_common.signing import Envelope, open_envelope, parse_public_key

STATEMENT_TYPE = "application/vnd.wardround.statement+json"
"""DSSE payload type of a hospital's own figure."""

TOLERANCE = 1e-9
"""Both sides price the same constants with the same accountant; nothing but rounding of floats may differ."""

MAX_STATEMENT_BYTES = 16_384
"""An envelope with one signature has about 1 kB."""


class Statement(Document):
    """What a hospital says that one study has spent there; signed with its identity key."""

    format: Literal["wardround/statement/1"] = "wardround/statement/1"
    site: Name
    study: Digest
    time: Annotated[int, Field(ge=0)]  # seconds since 1970, by the hospital's clock
    rounds: Annotated[int, Field(ge=0)]  # rounds that began, answered or not
    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Unit
    adjacency: Adjacency
    accountant: Annotated[str, Field(max_length=80)]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one study spent at one hospital, by the log and by the hospital."""

    study: str  # digest
    name: str  # of the study
    site: str
    rounds: int  # signed mechanism records
    price: Price | None  # None: nothing to price, or `problem`
    plan: float | None  # the ε that the study states for its whole plan
    stated: Statement | None = None
    problem: str = ""

    @property
    def equal(self) -> bool | None:
        """Whether the hospital's own figure is the log's; None without one."""
        if self.stated is None:
            return None
        mine = (self.price.epsilon, self.price.delta) if self.price else (0.0, self.stated.delta)
        same = abs(self.stated.epsilon - mine[0]) <= TOLERANCE and self.stated.delta == mine[1]
        return same and self.stated.rounds == self.rounds

    def as_json(self) -> dict[str, Any]:
        """Return everything for programs."""
        found = self.price
        return {
            "study": self.study,
            "study_name": self.name,
            "site": self.site,
            "rounds": self.rounds,
            "epsilon": found.epsilon if found else None,
            "epsilon_rdp": found.epsilon_rdp if found else None,
            "delta": found.delta if found else None,
            "unit": found.unit if found else None,
            "adjacency": found.adjacency if found else None,
            "accountant": found.accountant if found else None,
            "steps": found.steps if found else None,
            "plan_epsilon": self.plan,
            "stated_epsilon": self.stated.epsilon if self.stated else None,
            "stated_rounds": self.stated.rounds if self.stated else None,
            "equal": self.equal,
            "problem": self.problem or None,
        }


def recompute(history: History, statements: Sequence[Statement] = ()) -> list[Spent]:
    """Return what every study spent at every hospital, by study and site.

    Args:
        history: what the log says.
        statements: hospitals' own figures, their signatures verified (`load_statements`).
    """
    stated = {(s.study, s.site): s for s in sorted(statements, key=lambda s: s.time)}
    return [
        _spent(study, site, stated.get((study.digest, site)))
        for study in history.studies.values()
        for site in _sites(study)
    ]


def require_equal(spent: Iterable[Spent]) -> None:
    """Raise unless every figure could be recomputed and no hospital's own figure differs.

    Raises:
        BudgetError: a record cannot be priced.
        VerificationError: a hospital states another figure.
    """
    for one in spent:
        if one.problem:
            raise BudgetError(
                "audit-epsilon-unknown",
                f"the ε of {one.site} in study {one.name} cannot be relied on: {one.problem}",
                next_step="do not rely on any ε of this study; ask the operator and the hospital",
            )
        if one.equal is False:
            assert one.stated is not None
            mine = one.price.epsilon if one.price else 0.0
            raise VerificationError(
                "audit-epsilon-differs",
                f"{one.site} states ε = {one.stated.epsilon:g} over {one.stated.rounds} rounds of study {one.name}; "
                f"the audit trail gives {mine:g} over {one.rounds}",
                next_step="ask the hospital for a newer statement; if it stays so, entries are missing",
            )


def load_statements(paths: Iterable[Path], trust: Trust) -> list[Statement]:
    """Return hospitals' own figures from files that they handed over.

    Raises:
        ConfigError: a file cannot be read or is no statement.
        VerificationError: not signed by the member that it names.
    """
    return [_load_statement(path, trust) for path in paths]


def _load_statement(path: Path, trust: Trust) -> Statement:
    try:
        with path.open("rb") as file:
            envelope = Envelope.from_bytes(file.read(MAX_STATEMENT_BYTES).strip())
        claimed = Statement.from_bytes(envelope.payload_bytes())
    except (OSError, WardroundError) as error:
        raise ConfigError(
            "audit-statement-unusable",
            f"{path} is not a hospital's statement: {getattr(error, 'strerror', None) or error}",
            next_step="give the .statement.json file that `wardround client statement` wrote",
        ) from None
    if claimed.site not in trust.members:
        raise VerificationError(
            "audit-statement-stranger",
            f"{path} is by {claimed.site}, which is no member in your trust file",
            next_step="compare the member names of the trust file with those of the study",
        )
    open_envelope(envelope, STATEMENT_TYPE, [parse_public_key(trust.members[claimed.site])])
    return claimed


def _sites(study: StudyHistory) -> list[str]:
    members = {member.name for member in study.study.cohort.members} if study.study else set()
    return sorted(members | set(study.records) | study.unsigned)


def _spent(study: StudyHistory, site: str, stated: Statement | None) -> Spent:
    records = [record for _, record in study.records.get(site, [])]
    found, problem = None, ""
    if study.study is None:
        problem = "the study's text, which states δ, is not in the log"
    elif site in study.unpriced:
        problem = "it signed a mechanism that this version cannot price"
    elif records:
        try:
            found = price(records, study.study.privacy.delta)
        except BudgetError as error:
            problem = str(error)
    if site in study.unsigned:
        problem = problem or "the log holds a mechanism record for it that it did not sign"
    return Spent(
        study=study.digest,
        name=study.name,
        site=site,
        rounds=len(records),
        price=found,
        plan=study.study.privacy.epsilon if study.study else None,
        stated=stated,
        problem=problem,
    )
