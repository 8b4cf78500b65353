"""Mechanism records: what was run, not what it cost.

Rules, after dp_accounting's DpEvent contract.
- A record holds study constants only; nothing in it depends on a hospital's data.
- A record's class is never removed and never changes its meaning; a new mechanism gets a new
  `kind`. A reader that does not know a kind must refuse to price it, never skip it.
- ε is not a field: `accountant` prices records, today's or tomorrow's.

    >>> record = SubsampledGaussian(
    ...     study="sha256:" + "0" * 64, site="st-elsewhere", round=1, unit="record", adjacency="add-or-remove-one",
    ...     sample_rate=0.05, noise_multiplier=0.8, clip_norm=1.0, steps=6, records_per_unit=1)
    >>> record.kind
    'poisson-subsampled-gaussian'
"""

from typing import Annotated, Literal

from pydantic import Field

from wardround_common.documents import Digest, Document, Name

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


MechanismRecord = SubsampledGaussian
"""Union of all known kinds (one so far)."""
