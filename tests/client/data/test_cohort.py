"""Whose records they are: too few, δ too large, one patient under two identifiers, two budgets for one patient."""

from pathlib import Path

import numpy as np
import pytest

from wardround_client.data.cohort import (
    LONG_TEXT,
    normal_form,
    read_identifiers,
    require_cohort,
    require_disjoint,
    require_distinct,
    require_texts_of_one_patient,
)
from wardround_client.data.text import TextData
from wardround_common.errors import DataError

NOTE = "the patient was seen on the ward " * 10


def data(texts: list[str], units: list[int]) -> TextData:
    labels = tuple(0 for _ in texts)
    return TextData(texts=tuple(texts), labels=labels, responses=(), units=np.array(units, np.int64), unit="patient")


def test_enough_patients_pass():
    require_cohort(data(["a"] * 6, [0, 0, 1, 1, 2, 2]), deltas=[1e-5, 0.3], min_units=3)


def test_fewer_patients_than_the_minimum_say_how_many():
    with pytest.raises(DataError, match="holds 3 patients; the policy asks for at least 4") as caught:
        require_cohort(data(["a"] * 6, [0, 0, 1, 1, 2, 2]), deltas=[1e-5], min_units=4)
    assert caught.value.code == "data-too-few-units"


@pytest.mark.parametrize("deltas", [[1 / 3], [1e-5, 0.5]])
def test_delta_must_be_below_one_over_the_patients(deltas):
    with pytest.raises(DataError, match="1 / 3 patients") as caught:
        require_cohort(data(["a"] * 3, [0, 1, 2]), deltas=deltas, min_units=1)
    assert caught.value.code == "delta-too-large"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0017", "17"),
        ("ab12", "AB12"),
        (" 17", "17 "),
        ("17-b", "17B"),
        ("17.1/2", "1712"),
        ("\uff11\uff17", "17"),  # full-width digits
        ("00", "0"),
    ],
)
def test_identifiers_that_two_systems_write_differently_are_one(one, other):
    assert normal_form(one) == normal_form(other) != ""
    if one.strip() != other.strip():
        with pytest.raises(DataError, match="1 patients seem to have two identifiers") as caught:
            require_distinct([one, other, one, "elsewhere"])
        assert caught.value.code == "data-patient-twice"


def test_different_identifiers_stay_different():
    names = ["17", "71", "170", "17a", "b17"]
    assert len({normal_form(name) for name in names}) == len(names)
    require_distinct([*names, *names])


def test_records_without_identifier_are_not_one_patient():
    require_distinct(["", " ", "17"])


def test_a_long_text_under_two_patients_is_one_patient():
    assert len(NOTE) > LONG_TEXT
    with pytest.raises(DataError, match="1 records repeat a long text of another patient, first record 3") as caught:
        require_texts_of_one_patient(data([NOTE, "other", "  " + NOTE.upper()], [0, 1, 2]))
    assert caught.value.code == "data-patient-twice"
    assert NOTE[:20] not in str(caught.value)


def test_short_texts_may_repeat_and_a_patient_may_repeat_itself():
    assert require_texts_of_one_patient(data(["normal", "normal", "Normal ", NOTE, NOTE, ""], [0, 1, 2, 3, 3, 4])) == 1


def test_identifiers_are_read_as_written(tmp_path: Path):
    path = tmp_path / "notes.csv"
    path.write_text("patient,text\n007,a\n,b\n 7 ,c\n")
    assert read_identifiers(path, "patient") == ("007", "", " 7 ")


def test_a_patient_in_two_budgets_is_found():
    require_disjoint(["1", "2", ""], ["3", ""], names=("notes", "images"))
    with pytest.raises(DataError, match="2 patients are in both notes and images") as caught:
        require_disjoint(["1", "A-2"], ["a2", "0001", "9"], names=("notes", "images"))
    assert caught.value.code == "patients-in-two-budgets"
