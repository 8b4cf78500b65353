"""Checks on whose records a data set holds, where a person decides: when a study is approved.

Rules.
- Everything here is local; messages name counts and records to the hospital's own people, never an identifier or a
  text, and never leave.
- δ must be below 1 / units, or publishing a whole patient at random would count as private.
- What can be found of one patient under two identifiers: identifiers that differ only in case, spaces, dashes or
  leading zeros, a long text that occurs under two, and in FHIR a business identifier under two patients. What cannot:
  the same patient under unrelated identifiers with different texts. ε then holds for each identifier, and for the
  patient only as often as it has identifiers.
- Two data sets have budgets of their own only if no identifier, so normalised, is in both.
Not done here: the records themselves (`text`), which budgets there are (the policy).

    >>> normal_form(" 00-17 b")
    '17b'
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from wardround_client.data.sources import load_records
from wardround_client.data.text import TextData
from wardround_common.errors import DataError
from wardround_common.study import Task

LONG_TEXT = 200
"""Characters from which two patients hardly have a note in common: shorter ones, such as normal findings, repeat."""

_SEPARATORS = re.compile(r"[\s\-_./]+")


def require_cohort(data: TextData, *, deltas: Sequence[float], min_units: int) -> None:
    """Return if there are enough units for every δ and for the policy.

    Args:
        data: the hospital's records.
        deltas: the study's δ and the lifetime budget's.
        min_units: the fewest units that the policy allows.

    Raises:
        DataError: fewer units than `min_units`, or a δ that is not below 1 / units.
    """
    require_enough(data.unit_count, data.unit, deltas=deltas, min_units=min_units)


def require_enough(units: int, unit: str, *, deltas: Sequence[float], min_units: int) -> None:
    """Return if so many units are enough; as `require_cohort`.

    Raises:
        DataError: fewer units than `min_units`, or a δ that is not below 1 / units.
    """
    if units < min_units:
        raise DataError(
            "data-too-few-units",
            f"the data set holds {units} {unit}s; the policy asks for at least {min_units}",
            next_step="take a larger cohort, or let the responsible person change min_units in policy.yaml",
        )
    if max(deltas, default=0.0) * units >= 1:
        raise DataError(
            "delta-too-large",
            f"δ = {max(deltas):g} is not below 1 / {units} {unit}s: it would allow to publish a whole {unit}",
            next_step=f"ask for a study with δ far below {1 / units:.1g}; lifetime_delta in policy.yaml must be too",
        )


def read_identifiers(path: Path, column: str) -> tuple[str, ...]:
    """Return the patient identifier of each record, "" where there is none.

    Raises:
        ConfigError: the format's library is not installed.
        DataError: the file cannot be read.
    """
    task = Task(kind="instruction", dataset="identifiers", text_column=column, label_column=column)
    return load_records(path, task, strict=False).texts


def normal_form(identifier: str) -> str:
    """Return an identifier without what two systems write differently: case, separators, leading zeros."""
    plain = _SEPARATORS.sub("", unicodedata.normalize("NFKC", identifier)).casefold()
    return plain.lstrip("0") or plain[-1:]


def require_distinct(identifiers: Iterable[str]) -> None:
    """Return if no two identifiers have one normal form.

    Raises:
        DataError: they do, so one patient may count as two.
    """
    written: dict[str, dict[str, int]] = defaultdict(dict)  # normal form -> as written -> first record
    for number, identifier in enumerate(identifiers, start=1):
        written[normal_form(identifier)].setdefault(identifier.strip(), number)
    _require_one_each([list(forms.values()) for form, forms in written.items() if form])


def require_one_patient_each(names: Iterable[str], patients: Iterable[str]) -> None:
    """Return if no business identifier stands beside two patients.

    Args:
        names: the business identifier of each record, "" where there is none.
        patients: whose record it is, in the same order.

    Raises:
        DataError: one does, so one patient may count as two.
    """
    beside: dict[str, dict[str, int]] = defaultdict(dict)
    for number, (name, patient) in enumerate(zip(names, patients, strict=True), start=1):
        if patient:
            beside[name].setdefault(patient, number)
    _require_one_each([list(found.values()) for name, found in beside.items() if name])


def _require_one_each(first_records: Sequence[Sequence[int]]) -> None:
    """Raise if a patient (first record of each of its identifiers) has several."""
    doubled = [records for records in first_records if len(records) > 1]
    if doubled:
        one, other = doubled[0][:2]
        raise DataError(
            "data-patient-twice",
            f"{len(doubled)} patients seem to have two identifiers, such as that of records {one} and {other}",
            next_step="write each patient's identifier in one way, ε holds per identifier; wardround client data check "
            "names the lines",
        )


def require_texts_of_one_patient(data: TextData) -> int:
    """Return how many short texts occur under more than one patient; they may be ordinary.

    Raises:
        DataError: a long text does: one patient may count as two.
    """
    first: dict[str, int] = {}
    long: list[int] = []
    short: set[str] = set()
    for number, (text, unit) in enumerate(zip(data.texts, data.units.tolist(), strict=True), start=1):
        key = " ".join(text.casefold().split())
        if key and first.setdefault(key, unit) != unit:
            if len(key) < LONG_TEXT:
                short.add(key)
            else:
                long.append(number)
    if long:
        raise DataError(
            "data-patient-twice",
            f"{len(long)} records repeat a long text of another patient, first record {long[0]}",
            next_step="remove the copies or give both one identifier; if such texts are a template, set "
            "allow_repeated_texts of the data set in client.toml",
        )
    return len(short)


def require_disjoint(ours: Iterable[str], others: Iterable[str], *, names: tuple[str, str]) -> None:
    """Return if two data sets are about different patients, as far as identifiers tell.

    Raises:
        DataError: a patient is in both, so they cannot have two budgets.
    """
    common = ({normal_form(i) for i in ours} & {normal_form(i) for i in others}) - {""}
    if common:
        raise DataError(
            "patients-in-two-budgets",
            f"{len(common)} patients are in both {names[0]} and {names[1]}, which the policy gives separate budgets",
            next_step="take the data set out of separate_budgets in policy.yaml, or the patients out of one of them",
        )
