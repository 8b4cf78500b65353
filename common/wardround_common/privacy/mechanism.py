"""Mechanism records: what was run, not what it cost.

Rules, after dp_accounting's DpEvent contract.
- A record holds study constants only; nothing in it depends on a hospital's data.
- A record's class is never removed and never changes its meaning; a new mechanism gets a new
  `kind`. A reader that does not know a kind must refuse to price it, never skip it.
- ε is not a field: `accountant` prices records, today's or tomorrow's.

Not done here: what an evaluation adds up (`evaluation`).

    >>> record = SubsampledGaussian(
    ...     study="sha256:" + "0" * 64, site="st-elsewhere", round=1, unit="record", adjacency="add-or-remove-one",
    ...     sample_rate=0.05, noise_multiplier=0.8, clip_norm=1.0, steps=6, records_per_unit=1)
    >>> record.kind
    'poisson-subsampled-gaussian'
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from wardround_common.documents import Digest, Document, Name, first_problem, parse_json
from wardround_common.errors import ProtocolError

MECHANISM_TYPE = "application/vnd.wardround.mechanism+json"
"""DSSE payload type of a record signed by its hospital."""

Unit = Literal["record", "patient"]
"""Whose participation is hidden: one record, or everything of one patient at one site."""

Adjacency = Literal["add-or-remove-one"]
"""Neighbouring data sets differ by the presence of one unit."""


class SubsampledGaussian(Document):
    """`steps` noisy clipped sums over Poisson samples (Abadi et al., 2016, arXiv 1607.00133)."""

    format: Literal["wardround/mechanism/1"] = "wardround/mechanism/1"
    kind: Literal["poisson-subsampled-gaussian"] = "poisson-subsampled-gaussian"
    study: Digest
    site: Name
    round: Annotated[int, Field(ge=1, le=100_000)]
    unit: Unit
    adjacency: Adjacency
    sample_rate: Annotated[float, Field(gt=0, le=1)]  # probability that a unit takes part in a step
    noise_multiplier: Annotated[float, Field(gt=0, le=1000)]  # noise std divided by clip_norm
    clip_norm: Annotated[float, Field(gt=0)]  # L2 bound of one unit's gradient
    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    records_per_unit: Annotated[int, Field(ge=1, le=10_000)]  # at most this many per step; 1 for unit "record"


class Evaluation(Document):
    """A study's evaluation on patients: noised sums over the units that are held out of training (`evaluation`)."""

    every: Annotated[int, Field(ge=1, le=100_000)]  # it runs in the rounds whose number this divides
    held_out: Annotated[float, Field(gt=0, le=0.5)]  # share of the units that are evaluated on and never trained on
    noise_multiplier: Annotated[float, Field(gt=0, le=1000)]  # noise std divided by the L2 bound sqrt(3) of one unit
    loss_bound: Annotated[float, Field(gt=0, le=1000)]  # nats; a record's larger loss counts as this

    def runs_in(self, round_: int) -> bool:
        """Return whether round `round_` (1-based) evaluates."""
        return round_ % self.every == 0


class EvaluatedGaussian(Document):
    """What runs in a round that also evaluates: a `SubsampledGaussian`, and one Gaussian release over held-out units.

    The release is one noisy sum without sampling: of each unit a vector of L2 norm at most sqrt(3), plus noise of
    standard deviation `evaluation.noise_multiplier` x sqrt(3) in each of its three coordinates.
    """

    format: Literal["wardround/evaluated-mechanism/1"] = "wardround/evaluated-mechanism/1"
    kind: Literal["evaluated-poisson-subsampled-gaussian"] = "evaluated-poisson-subsampled-gaussian"
    study: Digest
    site: Name
    round: Annotated[int, Field(ge=1, le=100_000)]
    unit: Unit
    adjacency: Adjacency
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Annotated[float, Field(gt=0, le=1000)]
    clip_norm: Annotated[float, Field(gt=0)]
    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    records_per_unit: Annotated[int, Field(ge=1, le=10_000)]
    evaluation: Evaluation

    @property
    def training(self) -> SubsampledGaussian:
        """The record of a round of the same study that does not evaluate."""
        return SubsampledGaussian(**{name: getattr(self, name) for name in _TRAINING})


_TRAINING = tuple(name for name in SubsampledGaussian.model_fields if name not in ("format", "kind"))

MechanismRecord = SubsampledGaussian | EvaluatedGaussian
"""Union of all known kinds."""

_records: TypeAdapter[MechanismRecord] = TypeAdapter(Annotated[MechanismRecord, Field(discriminator="kind")])


def parse_record(data: bytes) -> MechanismRecord:
    """Decode one record's canonical JSON.

    Raises:
        ProtocolError: not JSON, of a kind that this version does not know, or not in canonical form.
    """
    parse_json(data)
    try:
        record = _records.validate_json(data)
    except ValidationError as error:
        raise ProtocolError(
            "document-invalid",
            f"not a mechanism record that this version knows: {first_problem(error)}",
            next_step="check that both sides run the same wardround version",
        ) from None
    if record.to_bytes() != data:
        raise ProtocolError(
            "document-not-canonical",
            "this mechanism record is not in canonical form",
            next_step="the sender must encode documents as docs/spec/documents.md says",
        )
    return record


def in_rounds(
    record: MechanismRecord, rounds: int, evaluated: int | None = None
) -> tuple[tuple[MechanismRecord, int], ...]:
    """Return what `rounds` rounds of a study come to, as (record, times it ran).

    Args:
        record: of a round that evaluates if the study has an evaluation, else of any round.
        rounds: how many rounds.
        evaluated: how many of them evaluated; by default they are the first ones of the study.
    """
    if isinstance(record, SubsampledGaussian):
        return ((record, rounds),)
    times = rounds // record.evaluation.every if evaluated is None else evaluated
    return ((record.training, rounds - times), (record, times))
