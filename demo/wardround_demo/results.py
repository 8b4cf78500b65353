"""`results.json`: everything that the demo's table shows, as one document (docs/spec/results.md).

Rules.
- A row says where its numbers come from: `live` (this run) or `recorded` (command, date, seed,
  commit, machine); a recorded row whose data or code has changed since is `stale` and has no numbers.
- ε never stands alone: δ, unit, adjacency and accountant are beside it, and the value that the audit
  trail gives on its own is beside the hospital's.
- `schema` changes whenever a field changes its meaning.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)


class Provenance(_Part):
    """How a row's numbers were made."""

    command: str
    date: str  # UTC, ISO 8601
    seed: int
    commit: str
    data_digest: str
    code_digest: str
    machine: str


class Row(_Part):
    """One arm on the held-out test set."""

    arm: str  # closed list: arms.ARMS
    title: str
    source: Literal["live", "recorded", "stale", "not run"]
    accuracy: Share | None = None
    macro_f1: Share | None = None
    response_nll: float | None = None  # instruction tuning: nats per response token
    provenance: Provenance | None = None  # of live and recorded rows


class Hospital(_Part):
    """One hospital's view of the federated model, and what it spent."""

    name: str
    accuracy: Share | None  # on the test set, re-weighted to its case mix (metrics.accuracy_under)
    epsilon_ledger: float | None  # what its own ledger says
    epsilon_audit: float | None  # recomputed from its signed records in the audit trail; None: there are none
    agree: bool


class Privacy(_Part):
    """What the study cost one unit at one hospital."""

    epsilon: float
    delta: float
    unit: str
    adjacency: str
    accountant: str
    planned_epsilon: float
    noise_multiplier: float
    sample_rate: float
    clip_norm: float
    steps: int


class Audit(_Part):
    """What `wardround audit verify` answered."""

    accepted: bool
    exit_code: int
    command: str
    entries: int
    report: Any = None  # its own JSON, unchanged


class Phase(_Part):
    """How long one phase of the demo took."""

    name: str
    seconds: float


class Results(_Part):
    """The whole document."""

    schema_: Literal["wardround/demo-results/1"] = Field("wardround/demo-results/1", alias="schema")
    title: str
    quick: bool
    model: str
    seed: int
    version: str
    data_digest: str
    data_source: str
    test_texts: int
    rows: tuple[Row, ...]
    hospitals: tuple[Hospital, ...]
    worst_hospital: str | None
    privacy: Privacy
    audit: Audit
    phases: tuple[Phase, ...]
    seconds: float
    peak_memory_bytes: int | None
    files: dict[str, str]

    def row(self, arm: str) -> Row | None:
        """Return the row of `arm`, if there is one."""
        return next((row for row in self.rows if row.arm == arm), None)

    def to_json(self) -> str:
        """Return the document as indented JSON."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"

    @property
    def sound(self) -> bool:
        """Whether the audit trail was accepted and every hospital's ε follows from it."""
        return self.audit.accepted and all(hospital.agree for hospital in self.hospitals)
