"""One patient under two identifiers, and texts that occur twice, in a file of any size.

Rules. The same findings as `cohort.require_distinct`, `require_one_patient_each` and `require_texts_of_one_patient`
make at approval, without keeping texts or identifiers (tests/client/data/test_check.py holds them together).

    >>> twice = Duplicates(Fingerprint(b"key")); twice.add_owner("A-1", 2); twice.add_owner("a1", 5)
    >>> twice.owners().twice.first
    [5]
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wardround_client.data.cohort import LONG_TEXT, normal_form
from wardround_client.data.spill import Fingerprint, Groups, Rows

FIRST_PLACES = 5
"""Lines that a finding names: enough to see what is wrong."""


@dataclass(kw_only=True)
class Places:
    """How many, and where the first ones are."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, place: int) -> None:
        """Take one; places come in their order."""
        self.count += 1
        if len(self.first) < FIRST_PLACES:
            self.first.append(place)

    def add_all(self, places: NDArray[np.uint64]) -> None:
        """Take several, in any order."""
        self.count += len(places)
        self.first = sorted([*self.first, *np.sort(places)[:FIRST_PLACES].tolist()])[:FIRST_PLACES]


@dataclass(kw_only=True)
class Owners:
    """What the identifiers of a file say."""

    records: Counter[int]  # records of a patient -> how many patients have so many
    twice: Places  # patients who seem to have two identifiers; the place is the first of the second one


@dataclass(kw_only=True)
class Repeats:
    """Which texts of a file occur twice."""

    long: Places = field(default_factory=Places)  # records that repeat a long text of another patient
    other: Places = field(default_factory=Places)  # records that repeat any text of another patient
    same: Places = field(default_factory=Places)  # records that repeat a text of the same patient
    short: int = 0  # different short texts that occur under several patients


class Duplicates:
    """Takes identifiers and texts in the order of the file; answers at its end. A context manager, for its files."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        self._fingerprint = fingerprint
        self._owners, self._texts, self._names = Groups(), Groups(), Groups()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for groups in (self._owners, self._texts, self._names):
            groups.close()

    def add_owner(self, identifier: str, place: int) -> None:
        """Take the identifier of the record at `place`."""
        exact, form = self._fingerprint(identifier), normal_form(identifier)
        self._owners.add(self._fingerprint(form) if form else exact, exact, place)

    def add_name(self, name: str, identifier: str, place: int) -> None:
        """Take a business identifier that stands beside the patient's."""
        self._names.add(self._fingerprint(name), self._fingerprint(identifier), place)

    def add_text(self, text: str, owner: str, place: int) -> None:
        """Take the text of the record at `place`."""
        key = " ".join(text.casefold().split())
        if key:
            mark = self._fingerprint(key) & ~1 | (len(key) >= LONG_TEXT)  # the last bit says whether it is long
            self._texts.add(mark, self._fingerprint(owner), place)

    def owners(self) -> Owners:
        """Return what was found of identifiers."""
        found = Owners(records=Counter(), twice=Places())
        for rows in self._owners.parts():
            _, counts = np.unique(rows[:, 1], return_counts=True)
            found.records.update(counts.tolist())
            found.twice.add_all(_seconds(rows))
        return found

    def names(self) -> Places:
        """Return the patients who share a business identifier with another."""
        found = Places()
        for rows in self._names.parts():
            found.add_all(_seconds(rows))
        return found

    def texts(self) -> Repeats:
        """Return what was found of texts."""
        found = Repeats()
        for rows in self._texts.parts():
            if not len(rows):
                continue
            starts = _starts(rows)
            foreign = rows[:, 1] != np.repeat(rows[starts, 1], np.diff([*starts, len(rows)]))
            long = rows[:, 0] & np.uint64(1) == 1
            found.long.add_all(rows[foreign & long, 2])
            found.other.add_all(rows[foreign, 2])
            found.short += len(np.unique(rows[foreign & ~long, 0]))
            found.same.add_all(_again(rows))
        return found


def _starts(rows: Rows) -> NDArray[np.int64]:
    """Return where each key begins; rows are sorted by key."""
    return np.flatnonzero(np.concatenate([[True], rows[1:, 0] != rows[:-1, 0]]))


def _seconds(rows: Rows) -> NDArray[np.uint64]:
    """Return, for each key with several values, the place where the second one begins."""
    pairs, at = np.unique(rows[:, :2], axis=0, return_index=True)
    firsts = np.stack([pairs[:, 0], rows[at, 2]], axis=1)
    firsts = firsts[np.lexsort((firsts[:, 1], firsts[:, 0]))]
    _, begin, counts = np.unique(firsts[:, 0], return_index=True, return_counts=True)
    return np.asarray(firsts[begin[counts > 1] + 1, 1], np.uint64)


def _again(rows: Rows) -> NDArray[np.uint64]:
    """Return the places of rows whose key and value occurred before."""
    order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))
    sorted_ = rows[order]
    same = (sorted_[1:, :2] == sorted_[:-1, :2]).all(axis=1)
    return np.asarray(sorted_[1:][same, 2], np.uint64)
