"""What `wardround client data check` found, as one document.

Rules.
- It holds counts, lines and the study's own words; no text, no identifier, and of labels only those that the study
  lists or that so many patients share that they name nobody (`MIN_SHARED`).
- It is about patients all the same, and stays in the house.

    >>> Report(...).refused  # doctest: +SKIP
    ['data-patient-twice']
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field

from wardround_common.documents import Document

MIN_SHARED = 5
"""Patients (records, where no patient is known) who must share a label before it is shown unasked."""

MAX_LABELS_SHOWN = 50

Places = Annotated[tuple[int, ...], Field(max_length=5)]  # lines or rows, the first ones


class Finding(Document):
    """One thing that a person should know, for all records that it is true of."""

    code: str  # a row of docs/errors.md if approval would refuse for it
    refuses: bool
    says: str
    do: str
    count: int  # records; of identifiers patients; 0: about the file as a whole
    places: Places = ()


class Bar(Document):
    """One bar of a histogram."""

    name: str
    count: int


class Spread(Document):
    """How whole numbers are spread. Empty: all zero and no bars."""

    count: int
    total: int
    smallest: int
    median: int
    p90: int
    p99: int
    largest: int
    bars: tuple[Bar, ...]

    @classmethod
    def of(cls, counted: Counter[int], edges: Sequence[int]) -> Self:
        """Return the spread of numbers (number -> how often), in bars that begin at `edges`."""
        values, count = sorted(counted), counted.total()
        return cls(
            count=count,
            total=sum(value * often for value, often in counted.items()),
            smallest=values[0] if values else 0,
            median=_quantile(counted, values, 0.5),
            p90=_quantile(counted, values, 0.9),
            p99=_quantile(counted, values, 0.99),
            largest=values[-1] if values else 0,
            bars=tuple(_bars(counted, edges)) if values else (),
        )


class LabelCount(Document):
    """One label and its records."""

    label: str
    records: int


class Labels(Document):
    """What stands in the label column."""

    kind: Literal["classes", "responses"]
    different: int | None  # None: too many to count
    shown: tuple[LabelCount, ...]
    other_labels: int = 0  # different ones that are not shown
    other_records: int = 0
    length: Spread  # characters


class Missing(Document):
    """What a column lacks."""

    role: Literal["text", "label", "patient"]
    column: str
    records: int  # no value, an empty one, or one of a wrong type
    places: Places = ()


class Report(Document):
    """The whole check."""

    format: Literal["wardround/data-check/1"] = "wardround/data-check/1"
    file: str
    file_format: str
    bytes: int
    place: Literal["line", "row"]  # what `places` count
    study: str | None
    unit: Literal["patient", "record"]
    unit_column: str | None
    records: int
    trained: int  # records that would contribute, once nothing is refused
    unreadable: int
    left_out: int  # entered in error
    withdrawn: int  # of patients who withdrew their consent
    units: int
    records_per_unit: Spread
    records_per_unit_used: int | None  # the study's constant
    units_above: int  # patients with more records than that
    characters: Spread
    labels: Labels
    missing: tuple[Missing, ...]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """What approval would refuse for."""
        return tuple(finding for finding in self.findings if finding.refuses)


def _quantile(counted: Counter[int], values: Sequence[int], share: float) -> int:
    """Return the smallest value that at least `share` of all do not exceed."""
    needed, seen = share * counted.total(), 0
    for value in values:
        seen += counted[value]
        if seen >= needed:
            return value
    return 0


def _bars(counted: Counter[int], edges: Sequence[int]) -> list[Bar]:
    """Return the bars from the first to the last that is not empty."""
    heights = Counter[int]()
    for value, often in counted.items():
        heights[max(0, bisect_right(edges, value) - 1)] += often
    names = [_name(low, high - 1) for low, high in pairwise(edges)] + [f"{edges[-1]:,} or more"]
    return [Bar(name=names[i], count=heights[i]) for i in range(min(heights), max(heights) + 1)]


def _name(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
