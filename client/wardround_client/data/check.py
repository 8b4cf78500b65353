"""From counts to a report: what approval would refuse, and what a person should look at.

Rules.
- A refusal has the code that approval would raise (docs/errors.md); the order is approval's.
- A remark refuses nothing and says why it may matter.

    >>> check_file(Path("notes.csv"), Question(unit_column="patient")).trained  # doctest: +SKIP
    412
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from wardround_client.data.cohort import LONG_TEXT, require_enough
from wardround_client.data.duplicates import Duplicates, Owners, Places, Repeats
from wardround_client.data.report import Finding, Missing, Report, Spread
from wardround_client.data.smells import SMELLS
from wardround_client.data.sources import Format
from wardround_client.data.spill import Fingerprint
from wardround_client.data.tally import Question, Tally, count
from wardround_common.errors import DataError

LENGTHS = (0, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)
"""Characters of a text at which bars begin."""

RECORDS = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1_001)
"""Records of a patient at which bars begin."""

ONE_WAY = "write each patient's identifier in one way: ε holds per identifier"


def check_file(path: Path, question: Question, *, progress: Callable[[int], None] | None = None) -> Report:
    """Return what would be trained from `path`; see `tally.count` for arguments and errors."""
    with Duplicates(Fingerprint(os.urandom(32))) as duplicates:
        tally = count(path, question, duplicates, progress=progress)
        return _report(tally, duplicates.owners(), duplicates.names(), duplicates.texts())


def _report(tally: Tally, owners: Owners, names: Places, repeats: Repeats) -> Report:
    path, study = tally.path, tally.question.study
    units = owners.records.total() if tally.unit_column else tally.records - tally.unreadable
    used = study.privacy.records_per_unit if study and tally.unit_column else None
    above = sum(often for held, often in owners.records.items() if used and held > used)
    return Report(
        file=path.name,
        file_format=tally.format.name.lower().replace("_", " "),
        bytes=path.stat().st_size,
        place="row" if tally.format is Format.PARQUET else "line",
        study=study.name if study else None,
        unit="patient" if tally.unit_column else "record",
        unit_column=tally.unit_column,
        records=tally.records,
        trained=tally.trained,
        unreadable=tally.unreadable,
        left_out=tally.left_out,
        withdrawn=tally.withdrawn,
        units=units,
        records_per_unit=Spread.of(owners.records, RECORDS),
        records_per_unit_used=used,
        units_above=above,
        characters=Spread.of(tally.lengths, LENGTHS),
        labels=tally.labels.result(),
        missing=tuple(_missing(tally)),
        findings=(*_refusals(tally, units, owners, names, repeats), *_remarks(tally, repeats, above)),
    )


def _missing(tally: Tally) -> Iterator[Missing]:
    for role, places in tally.missing.items():
        yield Missing(role=role, column=tally.columns[role], records=places.count, places=tuple(places.first))


def _refusals(tally: Tally, units: int, owners: Owners, names: Places, repeats: Repeats) -> Iterator[Finding]:
    """Yield what approval would refuse for."""
    for (code, says, do), places in tally.problems.items():
        yield _finding(code, says, do, places, refuses=True)
    yield from _whole_file(tally, units)
    if tally.unit_column is None:
        return
    if owners.twice.count:
        says = "patients seem to have two identifiers: they differ only in case, separators or leading zeros"
        yield _finding("data-patient-twice", says, ONE_WAY, owners.twice, refuses=True)
    if names.count:
        says = "patients share a business identifier (subject.identifier) with another patient"
        yield _finding("data-patient-twice", says, ONE_WAY, names, refuses=True)
    if repeats.long.count and not tally.question.allow_repeated_texts:
        says = f"records repeat a text of {LONG_TEXT} characters or more of another patient"
        do = "remove the copies or give both one identifier; if it is a template, set allow_repeated_texts"
        yield _finding("data-patient-twice", says, do, repeats.long, refuses=True)


def _whole_file(tally: Tally, units: int) -> Iterator[Finding]:
    question, study = tally.question, tally.question.study
    if not tally.records:
        yield _about_file("data-empty", "it holds no records", "export the cohort again, or give another file")
        return
    if study and study.privacy.unit == "patient" and tally.unit_column is None:
        do = "set unit_column of the data set in client.toml, or give --unit-column"
        yield _about_file("dataset-without-unit", "the study protects patients; no column says whose a record is", do)
    if question.kind == "classes" and not tally.problems and (tally.labels.different or 0) < 2:
        do = "check the export's label column; a single class teaches the model nothing"
        yield _about_file("data-one-class", "all records have the same label", do)
    try:
        unit = "patient" if tally.unit_column else "record"
        require_enough(units, unit, deltas=question.deltas, min_units=question.min_units)
    except DataError as error:
        yield _about_file(error.code, error.message, error.next_step)


def _remarks(tally: Tally, repeats: Repeats, above: int) -> Iterator[Finding]:
    """Yield what nobody refuses and a person should know."""
    if tally.single_column and any(mark in tally.single_column for mark in ";\t|"):
        says = "the header has one column with semicolons, tabs or bars in it: they are not taken for separators"
        yield _remark("one-column", says, "export with commas between the columns", Places())
    if tally.unit_column is None and tally.question.study is None:
        says = "no column says whose a record is: ε would hold for each record, and not for a patient"
        yield _remark("no-patients", says, "name the patient's column with --unit-column", Places())
    yield from _remarks_on_texts(tally, repeats)
    if never := len(tally.labels.never()):
        says = f"{never} of the study's labels have no record here"
        yield _remark("labels-unused", says, "expected? otherwise compare local codes with the study's", Places())
    if above:
        says = f"{above:,} patients have more records than the study draws of one patient in a step"
        yield _remark("records-above", says, "nothing: a random choice of them counts each time", Places())


def _remarks_on_texts(tally: Tally, repeats: Repeats) -> Iterator[Finding]:
    if tally.ragged.count:
        says = "rows have more fields than the header: an unquoted comma cuts what follows it"
        yield _remark("fields-lost", says, "export with quotes around texts", tally.ragged)
    for name, places in tally.smells.items():
        if places.count:
            yield _remark(name, *SMELLS[name], places)
    if tally.unit_column and repeats.short:
        says = f"{repeats.short:,} short texts occur under more than one patient"
        yield _remark(
            "short-repeated", says, "ordinary for standard findings; or is one patient there twice?", Places()
        )
    if tally.unit_column and tally.question.allow_repeated_texts and repeats.long.count:
        says = "records repeat a long text of another patient, which allow_repeated_texts permits"
        yield _remark("long-repeated", says, "look at one: a template, or one patient twice?", repeats.long)
    again = repeats.same if tally.unit_column else repeats.other
    if again.count:
        whose = "the same patient" if tally.unit_column else "another record"
        do = "remove copies that an export made: they weigh twice"
        yield _remark("repeated", f"records repeat a text of {whose}", do, again)


def _about_file(code: str, says: str, do: str) -> Finding:
    return Finding(code=code, refuses=True, says=says, do=do, count=0)


def _remark(code: str, says: str, do: str, places: Places) -> Finding:
    return _finding(code, says, do, places, refuses=False)


def _finding(code: str, says: str, do: str, places: Places, *, refuses: bool) -> Finding:
    return Finding(code=code, refuses=refuses, says=says, do=do, count=places.count, places=tuple(places.first))
