"""Dealing texts out to hospitals, writing and reading them, and the digest that ties rows to data."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.demo_records import make_records, small_dataset

from wardround_common.errors import DataError
from wardround_demo import dataset
from wardround_demo.chapters import CASE_MIX, HOSPITALS, LABELS, TITLES


def test_every_training_text_goes_to_exactly_one_hospital():
    records = make_records()
    files = dataset.deal(records, seed=0)
    dealt = Counter(text for name in HOSPITALS for text in files[name].texts)
    assert dealt == Counter(r.text for r in records if r.part == "train")
    assert set(files["public-test"].texts) == {r.text for r in records if r.part == "test"}
    assert set(files["public-val"].texts) == {r.text for r in records if r.part == "val"}


def test_the_case_mix_is_met_to_one_text():
    files = dataset.deal(make_records(train=97), seed=3)
    for chapter in LABELS:
        for place, name in enumerate(HOSPITALS):
            exact = 97 * CASE_MIX[chapter][place] / 100
            assert abs(files[name].labels.count(chapter) - exact) < 1


def test_the_seed_changes_who_gets_a_text_but_not_how_many():
    one, two = (dataset.deal(make_records(), seed=seed) for seed in (0, 1))
    assert {name: len(part) for name, part in one.items()} == {name: len(part) for name, part in two.items()}
    assert set(one["trauma"].texts) != set(two["trauma"].texts)
    assert dataset.deal(make_records(), seed=0) == one


@given(st.integers(0, 10_000), st.sampled_from(sorted(CASE_MIX.values())))
def test_apportion_sums_to_the_total(total, shares):
    parts = dataset._apportion(total, shares)
    assert sum(parts) == total
    assert all(abs(part - total * share / 100) < 1 for part, share in zip(parts, shares, strict=True))


def test_subsets_have_the_asked_size():
    files = dataset.deal(make_records(), seed=0, train=100, held_out=30)
    assert sum(len(files[name]) for name in HOSPITALS) == 100
    assert len(files["public-val"]) == len(files["public-test"]) == 30


def test_what_was_written_is_read_back(tmp_path):
    files = dataset.deal(make_records(), seed=0)
    manifest = dataset.write(tmp_path, files, seed=0)
    found = dataset.load(tmp_path)
    assert found.files == files
    assert found.manifest == manifest
    assert manifest.public
    assert (tmp_path / "trauma.csv").read_text().splitlines()[0] == "text,chapter"


def test_texts_with_commas_and_quotes_survive(tmp_path):
    odd = dataset.Texts(texts=('a, "b"', "plain"), labels=("01", "02"))
    dataset.write(tmp_path, dict.fromkeys(dataset.FILES, odd), seed=0)
    assert dataset.load(tmp_path).test == odd


def test_an_altered_file_is_noticed(tmp_path):
    small_dataset(tmp_path)
    with (tmp_path / "trauma.csv").open("a") as file:
        file.write("one more,01\n")
    with pytest.raises(DataError) as caught:
        dataset.load(tmp_path)
    assert caught.value.code == "demo-data-altered"


@pytest.mark.parametrize("damage", ["missing", "no-manifest", "columns", "not-json"])
def test_damaged_data_is_one_clear_error(tmp_path, damage):
    small_dataset(tmp_path)
    if damage == "missing":
        (tmp_path / "trauma.csv").unlink()
    elif damage == "no-manifest":
        (tmp_path / "manifest.json").unlink()
    elif damage == "columns":
        (tmp_path / "public-test.csv").write_text("a,b,c\n1,2,3\n")
    else:
        (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError) as caught:
        dataset.load(tmp_path)
    assert caught.value.code == "demo-data-unreadable"


def test_the_digest_depends_on_every_file(tmp_path):
    before = small_dataset(tmp_path).manifest.digest
    seen = {before}
    for name in dataset.FILES:
        path = tmp_path / f"{name}.csv"
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        seen.add(dataset.content_digest(tmp_path))
        path.write_bytes(content)
    assert len(seen) == 1 + len(dataset.FILES)
    assert dataset.content_digest(tmp_path) == before


def test_instructions_answer_with_the_chapters_title():
    files = dataset.deal(make_records(train=3, held_out=1), seed=0)
    asked = dataset.as_instructions(files)
    for text, label, prompt, response in zip(
        files["trauma"].texts, files["trauma"].labels, asked["trauma"].texts, asked["trauma"].labels, strict=True
    ):
        assert prompt.endswith(text)
        assert response == TITLES[label]


def test_case_mix_is_a_distribution_over_chapters():
    mixes = dataset.case_mix(dataset.deal(make_records(train=100), seed=0))
    for place, name in enumerate(HOSPITALS):
        assert sum(mixes[name].values()) == pytest.approx(1)
        assert mixes[name]["15"] > 0
        total = sum(row[place] for row in CASE_MIX.values())
        assert mixes[name]["19"] == pytest.approx(CASE_MIX["19"][place] / total, abs=1e-3)


def test_the_hospitals_own_loader_reads_the_files(tmp_path):
    from wardround_client.data.text import load_texts
    from wardround_demo.settings import MINILM, task_of

    found = small_dataset(tmp_path)
    read = load_texts(found.path("trauma"), task_of(MINILM))
    assert read.texts == found.files["trauma"].texts
    assert tuple(LABELS[k] for k in read.labels) == found.files["trauma"].labels


def test_the_manifest_is_plain_json(tmp_path):
    small_dataset(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["public"] is True
