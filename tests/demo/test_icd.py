"""The ICD-10-CM data set: counts measured with an independent script, and the rules of the split."""

from collections import Counter, defaultdict

import pytest

from wardround_demo import icd
from wardround_demo.chapters import CASE_MIX, HOSPITALS, LABELS, TITLES
from wardround_demo.dataset import deal, write

told = []


@pytest.fixture(scope="module")
def records():
    return icd.build(seed=0, progress=lambda done, total: told.append((done, total)))


def test_seed_0_gives_the_measured_counts(records):
    # evidence: the first, separate script that built this set counted the same
    assert len(records) == 25_246
    assert Counter(r.part for r in records) == {"train": 19_033, "val": 2_507, "test": 3_706}
    assert Counter(r.chapter for r in records)["19"] == 3_327


def test_no_category_is_in_two_parts(records):
    parts = defaultdict(set)
    for record in records:
        parts[record.category].add(record.part)
    assert all(len(found) == 1 for found in parts.values())


def test_every_part_has_every_chapter_and_no_other(records):
    for part in ("train", "val", "test"):
        assert {r.chapter for r in records if r.part == part} == set(LABELS)


def test_a_category_gives_at_most_the_cap_and_no_variant_twice(records):
    by_category = defaultdict(list)
    for record in records:
        by_category[record.category].append(icd.variant_key(record.text))
    assert max(map(len, by_category.values())) == icd.MAX_PER_CATEGORY
    assert all(len(set(keys)) == len(keys) for keys in by_category.values())


def test_the_files_of_seed_0_are_these_bytes(records, tmp_path):
    # Recorded rows are tied to this digest; a change here means that every recorded row is void.
    manifest = write(tmp_path, deal(records, seed=0), seed=0)
    assert manifest.digest == "sha256:d3d20f4cfbcf5bc8b493ccc43c4d57689be2913626c8c1099486a1f6c741abde"
    assert manifest.counts == {
        "trauma": 5_987,
        "mother-and-child": 5_231,
        "general-medicine": 7_815,
        "public-val": 2_507,
        "public-test": 3_706,
    }


def test_another_seed_holds_out_other_categories(records):
    other = icd.build(seed=1)
    test_of = [{r.category for r in found if r.part == "test"} for found in (records, other)]
    assert test_of[0] != test_of[1]
    assert abs(len(other) - len(records)) < 250


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Fracture of right arm, initial encounter", "Fracture of left arm, sequela"),
        ("Ulcer of unspecified foot", "Ulcer of foot"),
        ("Burn, first trimester", "Burn"),
    ],
)
def test_variants_have_one_key(one, two):
    assert icd.variant_key(one) == icd.variant_key(two)


def test_different_conditions_have_different_keys():
    assert icd.variant_key("Fracture of femur") != icd.variant_key("Fracture of tibia")


def test_the_case_mix_shares_out_everything_once():
    assert set(CASE_MIX) == set(TITLES) == set(LABELS)
    assert len(LABELS) == 21
    assert all(sum(row) == 100 and len(row) == len(HOSPITALS) and min(row) > 0 for row in CASE_MIX.values())


def test_progress_reaches_its_end(records):
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 90_000
