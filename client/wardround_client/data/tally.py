"""What would be trained from a file, found in one pass that keeps none of it.

Rules.
- Each value is judged by the functions that approval uses (`text`, `cohort`): what is said to be refused here would be
  refused there, with the same code (tests/client/data/test_check.py).
- Memory does not grow with the file: it holds numbers, at most a thousand labels, and what `duplicates` keeps.
- Without a study its questions are left out: which labels there are, and whether δ and the cohort fit.
Not done here: the files' formats (`sources`), what the counts mean (`findings`), how they are shown.

    >>> check_file(Path("notes.csv"), Question(unit_column="patient")).trained  # doctest: +SKIP
    412
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wardround_client.data.cohort import normal_form
from wardround_client.data.duplicates import Duplicates, Places
from wardround_client.data.fhir import PATIENT_IDENTIFIER
from wardround_client.data.labels import LabelCounter
from wardround_client.data.record import Record
from wardround_client.data.smells import SMELLS, is_placeholder, smells
from wardround_client.data.sources import Format, format_of, place_of, records, unit_column_of

# The rules for one value are text.py's own (see `sources`).
from wardround_client.data.text import MAX_RECORD_CHARACTERS, _owner, _value
from wardround_common.errors import DataError
from wardround_common.study_file import StudyFile

PROGRESS_RECORDS = 1_000

Role = Literal["text", "label", "patient"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a file is looked at for; the defaults are those of a file without a study.

    Columns are named as the file names them.
    """

    text_column: str = "text"
    label_column: str = "label"
    unit_column: str | None = None
    study: StudyFile | None = None
    deltas: tuple[float, ...] = ()  # those that must be below 1 / units
    min_units: int = 0  # the policy's
    allow_repeated_texts: bool = False
    withdrawn: frozenset[str] = field(default=frozenset(), repr=False)  # identifiers

    @property
    def listed(self) -> tuple[str, ...]:
        """The study's labels; none without a study, or where responses are learnt."""
        return self.study.task.labels if self.study else ()

    @property
    def kind(self) -> Literal["classes", "responses"] | None:
        """What the study learns from the label column."""
        if self.study is None:
            return None
        return "classes" if self.study.task.kind == "classification" else "responses"


class Tally:
    """What was counted in one file; take records with `add`, in the file's order.

    Attributes:
        unit_column: column of the unit of privacy; None: each record is one.
        columns: role -> column, in the order in which approval looks at them.
        problems: (code, what, what to do) -> the records that approval would refuse for it.
        smells: name -> records that smell of it.
        missing: role -> records without a value there.
    """

    def __init__(self, path: Path, question: Question, duplicates: Duplicates) -> None:
        self.path, self.question, self.format = path, question, format_of(path)
        self._owner_column = unit_column_of(path, question.unit_column)
        by_record = question.study is not None and question.study.privacy.unit == "record"
        self.unit_column = None if by_record else self._owner_column
        self.columns: dict[Role, str] = {"text": question.text_column, "label": question.label_column}
        if self.unit_column is not None:
            self.columns["patient"] = self.unit_column
        self.problems: dict[tuple[str, str, str], Places] = {}
        self.smells = {name: Places() for name in SMELLS}
        self.missing = {role: Places() for role in self.columns}
        self.ragged, self.labels = Places(), LabelCounter(question.listed, kind=question.kind)
        self.lengths: Counter[int] = Counter()  # characters -> texts
        self.duplicates = duplicates
        self.records = self.trained = self.unreadable = self.left_out = self.withdrawn = 0
        self.single_column = ""  # the only column's name, where a file has just one
        self._gone = {normal_form(name) for name in question.withdrawn}

    def wanted(self) -> list[str]:
        """Return the columns to read."""
        return [*self.columns.values(), *([self._owner_column] if self._owner_column else [])]

    def add(self, record: Record) -> None:
        """Take the next record."""
        if record.left_out:
            self.left_out += 1
            return
        self.records += 1
        if record.problem is not None:
            self._refuse(record.problem, record.place)
        if record.row is None:
            self.unreadable += 1
            return
        self._look_at_shape(record)
        values = {role: self._read(record, role) for role in self.columns}
        text, label, owner = values["text"], values["label"], values.get("patient", f"record {record.place}")
        if text:
            self._look_at_text(text, owner, record.place)
        if label:
            self._look_at_label(label, owner, record.place)
        if owner and self.unit_column is not None:
            self._look_at_owner(record, owner)
        if text and owner and record.problem is None and self._is_known(label, record.place):
            gone = self._is_gone(record)
            self.withdrawn += gone
            self.trained += not gone

    def _look_at_shape(self, record: Record) -> None:
        if record.ragged:
            self.ragged.add(record.place)
        if self.records == 1 and record.row is not None and len(record.row) == 1 and self.format is Format.CSV:
            self.single_column = next(iter(record.row))

    def _read(self, record: Record, role: Role) -> str:
        """Return a value as training sees it, "" where there is none; count what approval says of that."""
        row, column, read = record.row or {}, self.columns[role], _owner if role == "patient" else _value
        if value := read(row, column, "", False):
            return value
        self.missing[role].add(record.place)
        if record.problem is None:
            try:
                read(row, column, place_of(self.path, record.place), True)
            except DataError as error:
                self._refuse(error, record.place)
        return ""

    def _look_at_text(self, text: str, owner: str, place: int) -> None:
        self.lengths[min(len(text), MAX_RECORD_CHARACTERS)] += 1
        for name in smells(text):
            self.smells[name].add(place)
        if owner:
            self.duplicates.add_text(text, owner, place)

    def _look_at_label(self, label: str, owner: str, place: int) -> None:
        self.labels.add(label, owner)
        if is_placeholder(label) and label.strip() not in self.question.listed:
            self.smells["placeholder"].add(place)

    def _look_at_owner(self, record: Record, owner: str) -> None:
        self.duplicates.add_owner(owner, record.place)
        name = (record.row or {}).get(PATIENT_IDENTIFIER) if self.format is Format.FHIR else None
        if name:
            self.duplicates.add_name(name, owner, record.place)

    def _is_known(self, label: str, place: int) -> bool:
        if label and self.question.listed and label.strip() not in self.question.listed:
            step = "map local codes to the study's labels (wardround client check STUDY lists them)"
            key = ("data-unknown-label", "the label is not one of the study's", step)
            self.problems.setdefault(key, Places()).add(place)
            return False
        return bool(label)

    def _is_gone(self, record: Record) -> bool:
        if not self._gone or self._owner_column is None:
            return False
        return normal_form(_value(record.row or {}, self._owner_column, "", False)) in self._gone

    def _refuse(self, error: DataError, place: int) -> None:
        """Count an error apart from its place; what is left of its text names columns only."""
        says = error.message.removeprefix(f"{place_of(self.path, place)}: ")
        self.problems.setdefault((error.code, says, error.next_step), Places()).add(place)


def count(
    path: Path, question: Question, duplicates: Duplicates, *, progress: Callable[[int], None] | None = None
) -> Tally:
    """Return what is in `path`.

    Args:
        path: a file of any `sources.Format`.
        question: its columns, and the study and policy to hold it against.
        duplicates: takes identifiers and texts.
        progress: called now and then with the number of bytes read since the last call.

    Raises:
        ConfigError: the format's library is not installed.
        DataError: unknown format, the file cannot be opened, or a column has another type.
    """
    tally, done = Tally(path, question, duplicates), 0
    for number, record in enumerate(records(path, tally.wanted(), unit_column=tally.unit_column)):
        tally.add(record)
        if progress and number % PROGRESS_RECORDS == 0:
            progress(record.read - done)
            done = record.read
    return tally
