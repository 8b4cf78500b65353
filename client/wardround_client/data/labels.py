"""Counting what stands in a label column, without keeping more than a study could list.

Rules.
- A label is shown if the study lists it, or if `report.MIN_SHARED` patients share it: a column that holds names or
  notes by mistake then shows none of them.
- More different values than a study may have labels, or a long one: these are responses, and only their length counts.

    >>> counter = LabelCounter(("a", "b"), kind="classes"); counter.add("a", "patient 1")
    >>> [(one.label, one.records) for one in counter.result().shown]
    [('a', 1), ('b', 0)]
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from wardround_client.data.report import MAX_LABELS_SHOWN, MIN_SHARED, LabelCount, Labels, Spread
from wardround_client.data.text import MAX_RECORD_CHARACTERS
from wardround_common.study import MAX_LABELS

MAX_LABEL_CHARACTERS = 300
"""A study's label is a line of at most so many."""

MAX_SHOWN_CHARACTERS = 60
"""A longer one is a sentence rather than a label, and is shown only if the study lists it."""

LENGTHS = (0, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
"""Characters of a label or response at which bars begin."""


class LabelCounter:
    """Counts labels; `listed` are the study's, `kind` its task's (None: found out)."""

    def __init__(self, listed: Sequence[str], *, kind: Literal["classes", "responses"] | None) -> None:
        self._listed, self._kind = tuple(listed), kind
        self._records: Counter[str] = Counter()
        self._owners: dict[str, set[str]] = {}
        self._lengths: Counter[int] = Counter()
        self._untold = 0  # records whose label is not kept
        self._too_many = kind == "responses"

    @property
    def different(self) -> int | None:
        """Different labels; None: too many to count."""
        return None if self._too_many else len(self._records)

    def add(self, label: str, owner: str) -> None:
        """Take the label of one record of `owner` ("": nobody knows whose)."""
        label = label.strip()
        self._lengths[min(len(label), MAX_RECORD_CHARACTERS)] += 1
        known = label in self._records
        if not known and (len(label) > MAX_LABEL_CHARACTERS or len(self._records) >= MAX_LABELS):
            self._too_many = True
        if known or not self._too_many:
            self._records[label] += 1
            owners = self._owners.setdefault(label, set())
            if owner and len(owners) < MIN_SHARED:
                owners.add(owner)
        else:
            self._untold += 1

    def never(self) -> list[str]:
        """Return the study's labels that no record has."""
        return [label for label in self._listed if not self._records[label]]

    def result(self) -> Labels:
        """Return what was counted."""
        shown = self._listed or self._shared()
        others = [label for label in self._records if label not in shown]
        return Labels(
            kind=self._kind or ("responses" if self._too_many else "classes"),
            different=self.different,
            shown=tuple(LabelCount(label=label, records=self._records[label]) for label in shown),
            other_labels=len(others),
            other_records=sum(self._records[label] for label in others) + self._untold,
            length=Spread.of(self._lengths, LENGTHS),
        )

    def _shared(self) -> tuple[str, ...]:
        """Return the most frequent labels of so many patients that they name nobody."""
        if self._too_many:
            return ()
        common = [label for label, _ in self._records.most_common() if len(label) <= MAX_SHOWN_CHARACTERS]
        return tuple([label for label in common if len(self._owners[label]) >= MIN_SHARED][:MAX_LABELS_SHOWN])
